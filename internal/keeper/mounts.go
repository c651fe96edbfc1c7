package keeper

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// answer does what p asks. A nil reply comes later. give is a descriptor to send
// along, -1 for none; fd is one that came along.
func (s *server) answer(p *peer, r *request, fd int) (answer *reply, give int, err error) {
	switch r.Op {
	case "attach":
		s.waiting = append(s.waiting, p)
		return nil, -1, nil
	case "list":
		s.sweep()
		return &reply{Epochs: s.epochs()}, -1, nil
	case "get":
		m, err := s.mount(r.Epoch)
		if err == nil && s.owns(p) {
			return &reply{Mount: m}, m.FD, nil
		}
		return &reply{Mount: m}, -1, err
	case "release":
		if s.owner != nil && !s.owns(p) {
			return nil, -1, ErrOwned
		}
		n, err := s.release(r.Dir)
		return &reply{Count: n}, -1, err
	}
	if !s.owns(p) {
		return nil, -1, ErrNotOwner
	}
	return &reply{}, -1, s.change(r, fd)
}

func (s *server) owns(p *peer) bool { return s.owner != nil && s.owner.peer == p }

// change does what only the owner may.
func (s *server) change(r *request, fd int) error {
	if r.Op == "put" {
		return s.put(r.Mount, fd)
	}
	m, err := s.mount(r.Epoch)
	if err != nil {
		return err
	}
	switch r.Op {
	case "init":
		m.InitIn = r.Data
	case "reply":
		m.InitOut = r.Data
	case "done":
		m.InitDone = true
	case "drop":
		if !ended(m.FD) {
			return ErrAlive
		}
		s.forget(m, "its daemon says that it has ended")
	default:
		return fmt.Errorf("%w: %q", errOp, r.Op)
	}
	return nil
}

func (s *server) put(m *Mount, fd int) error {
	switch {
	case m == nil || m.Epoch == 0 || fd < 0:
		return fmt.Errorf("%w: put without mount, epoch or descriptor", errOp)
	case len(m.Note) > MaxNote:
		return fmt.Errorf("note of %d bytes: %w", len(m.Note), ErrTooLarge)
	}
	if old := s.mounts[m.Epoch]; old != nil {
		unix.Close(old.FD)
	}
	m.FD = fd
	s.mounts[m.Epoch] = m
	s.log.Printf("%s (%s) is kept", m.Dir, m.Dev)
	return nil
}

func (s *server) mount(epoch uint64) (*Mount, error) {
	if m := s.mounts[epoch]; m != nil {
		return m, nil
	}
	return nil, ErrUnknown
}

// release ends the connections of the mounts on dir, whose callers nobody will
// answer.
func (s *server) release(dir string) (int, error) {
	n := 0
	for _, m := range s.mounts {
		if m.Dir == dir {
			s.forget(m, "somebody gives it up")
			n++
		}
	}
	if n == 0 {
		return 0, ErrUnknown
	}
	return n, nil
}

// sweep forgets the mounts whose connections have ended.
func (s *server) sweep() {
	for _, m := range s.mounts {
		if ended(m.FD) {
			s.forget(m, "it has ended")
		}
	}
}

func (s *server) forget(m *Mount, why string) {
	s.log.Printf("%s (%s) is no longer kept: %s", m.Dir, m.Dev, why)
	unix.Close(m.FD)
	delete(s.mounts, m.Epoch)
}

// ended reports whether a connection has.
func ended(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&unix.POLLERR != 0
}

func (s *server) epochs() []uint64 {
	var all []uint64
	for epoch := range s.mounts {
		all = append(all, epoch)
	}
	slices.Sort(all)
	return all
}
