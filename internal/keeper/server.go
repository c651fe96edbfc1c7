package keeper

import (
	"errors"
	"fmt"
	"log"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// sweepInterval is how often the keeper looks for connections that have ended.
// To be woken by poll(2) would mean to be woken for each request.
const sweepInterval = 2 * time.Second

// A server is the keeper. One goroutine does all, so nothing is locked.
type server struct {
	listener int
	idle     time.Duration
	log      *log.Logger

	peers   map[int]*peer // by descriptor
	mounts  map[uint64]*Mount
	owner   *owner // who serves the mounts, nil if nobody does
	waiting []*peer
	stop    bool // SIGTERM came

	packet, control []byte
}

// A peer is a connection.
type peer struct {
	fd      int
	process process
}

// A process is known by a descriptor of it and that one's number, which it alone
// ever has; or not at all (-1).
type process struct {
	pidfd  int
	number uint64
}

// An owner is the process that serves.
type owner struct {
	process
	peer *peer // nil once it has lost the connection
}

func newServer(listener int, idle time.Duration) *server {
	return &server{
		listener: listener, idle: idle, log: log.New(os.Stderr, "", log.LstdFlags),
		peers: make(map[int]*peer), mounts: make(map[uint64]*Mount),
		packet: make([]byte, MaxMessage), control: make([]byte, controlSize),
	}
}

// run serves until the keeper is of no use any more. stop is a descriptor that
// becomes readable at SIGTERM.
func (s *server) run(stop int) error {
	since, swept := time.Now(), time.Now() // useless since
	for {
		now := time.Now()
		if len(s.mounts) > 0 || len(s.peers) > 0 {
			since = now
		}
		if now.Sub(since) >= s.idle || s.stop && len(s.mounts) == 0 {
			return nil
		}
		wait := s.idle - now.Sub(since)
		if len(s.mounts) > 0 {
			wait = min(wait, sweepInterval)
			if now.Sub(swept) >= sweepInterval {
				s.sweep()
				swept = now
			}
		}
		if err := s.step(stop, wait); err != nil {
			return err
		}
	}
}

// step waits for something to happen and deals with it.
func (s *server) step(stop int, wait time.Duration) error {
	fds := []unix.PollFd{{Fd: int32(s.listener), Events: unix.POLLIN}, {Fd: -1, Events: unix.POLLIN}, {Fd: -1, Events: unix.POLLIN}}
	if !s.stop {
		fds[1].Fd = int32(stop)
	}
	if s.owner != nil {
		fds[2].Fd = int32(s.owner.pidfd)
	}
	for fd := range s.peers {
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	_, err := unix.Poll(fds, int(wait.Milliseconds())+1)
	if err == unix.EINTR {
		return nil
	}
	if err != nil {
		return fmt.Errorf("poll: %w", err)
	}
	if fds[1].Revents != 0 {
		s.stop = true
		s.log.Printf("asked to end, with %d mounts", len(s.mounts))
	}
	for _, p := range fds[3:] {
		if p.Revents != 0 {
			s.talk(s.peers[int(p.Fd)])
		}
	}
	if fds[2].Revents != 0 {
		s.disown("has ended")
	}
	if fds[0].Revents != 0 {
		s.accept()
	}
	s.grant()
	return nil
}

func (s *server) accept() {
	fd, _, err := unix.Accept4(s.listener, unix.SOCK_CLOEXEC)
	if err != nil {
		if err != unix.EAGAIN && err != unix.ECONNABORTED {
			s.log.Print("accept: ", err)
		}
		return
	}
	if err := checkPeer(fd); err != nil {
		s.log.Print("refused a connection: ", err)
		s.send(fd, refusal(err), -1) //nolint:errcheck // it is closed anyway
		unix.Close(fd)
		return
	}
	s.peers[fd] = &peer{fd: fd, process: processOf(fd)}
}

// checkPeer refuses other users at the other end of a socket.
func checkPeer(fd int) error {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err == nil && int(cred.Uid) != os.Geteuid() {
		err = fmt.Errorf("%w: that is %d, not %d", ErrDenied, os.Geteuid(), cred.Uid)
	}
	return err
}

// pidfsMagic is PIDFS_MAGIC: there each process has a number of its own.
const pidfsMagic = 0x50494446

// processOf returns the process at the other end of a socket.
func processOf(fd int) process {
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err != nil {
		return process{pidfd: -1} // an old kernel, or it has ended already
	}
	p := process{pidfd: pidfd}
	var fs unix.Statfs_t
	var st unix.Stat_t
	if unix.Fstatfs(pidfd, &fs) == nil && fs.Type == pidfsMagic && unix.Fstat(pidfd, &st) == nil {
		p.number = st.Ino
	}
	return p
}

func (p process) same(o process) bool { return p.number != 0 && p.number == o.number }

// talk takes one message from p and answers it.
func (s *server) talk(p *peer) {
	n, nc, flags, _, err := unix.Recvmsg(p.fd, s.packet, s.control, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	if err != nil || n == 0 {
		s.hangUp(p)
		return
	}
	var r request
	fd, err := decode(s.packet[:n], s.control[:nc], &r)
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = fmt.Errorf("a cut message: %w", ErrTooLarge)
	}
	var answer *reply
	give := -1
	if err == nil {
		answer, give, err = s.answer(p, &r, fd)
	}
	if err != nil {
		answer = refusal(err)
	}
	if fd >= 0 && (err != nil || r.Op != "put") {
		unix.Close(fd)
	}
	if answer == nil {
		return // it waits
	}
	if err := s.send(p.fd, answer, give); err != nil {
		s.log.Printf("answer %s: %v", r.Op, err)
		s.hangUp(p)
	}
}

func (s *server) send(fd int, answer *reply, give int) error {
	packet, control, err := encode(answer, give)
	if err != nil {
		return err
	}
	return unix.Sendmsg(fd, packet, control, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

// hangUp forgets a connection, but not that its process serves.
func (s *server) hangUp(p *peer) {
	s.waiting = slices.DeleteFunc(s.waiting, func(w *peer) bool { return w == p })
	if s.owner != nil && s.owner.peer == p {
		s.owner.peer = nil
		if s.owner.pidfd < 0 {
			s.disown("has hung up")
		}
	}
	delete(s.peers, p.fd)
	unix.Close(p.fd)
	if p.process.pidfd >= 0 {
		unix.Close(p.process.pidfd)
	}
}

func (s *server) disown(why string) {
	s.log.Printf("the daemon %s; %d mounts are kept", why, len(s.mounts))
	if s.owner.pidfd >= 0 {
		unix.Close(s.owner.pidfd)
	}
	s.owner = nil
}

// grant makes who waits longest the owner if there is none, or if it is of the
// same process.
func (s *server) grant() {
	for len(s.waiting) > 0 && (s.owner == nil || s.owner.same(s.waiting[0].process)) {
		p := s.waiting[0]
		s.waiting = s.waiting[1:]
		if s.owner == nil {
			s.owner = &owner{process: p.process}
			if p.process.pidfd >= 0 {
				pidfd, err := unix.FcntlInt(uintptr(p.process.pidfd), unix.F_DUPFD_CLOEXEC, 0)
				if err != nil {
					s.log.Print("watch the new daemon: ", err)
					pidfd = -1 // then by its connection
				}
				s.owner.pidfd = pidfd
			}
		}
		s.owner.peer = p
		s.sweep()
		for _, m := range s.mounts {
			m.Generation++
		}
		s.log.Printf("a daemon takes over %d mounts", len(s.mounts))
		if err := s.send(p.fd, &reply{Epochs: s.epochs()}, -1); err != nil {
			s.log.Print("answer attach: ", err)
			s.hangUp(p)
		}
	}
}

var errOp = errors.New("the keeper does not know this request")
