package keeper

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command is the first argument that makes a program the keeper: main is then
// to do nothing but call Main with the others.
const Command = "keeper"

// How much memory the Go runtime is to make do with.
const (
	memoryLimit = 6 << 20
	gcPercent   = 25
)

// What a keeper says to who started it, instead of an error.
const (
	saysReady = "ready"
	saysBusy  = "busy" // there is one already
)

// Main is the life of a keeper: --socket PATH. With --start it starts one in the
// background and returns when that is ready, or there is one already.
func Main(args []string) error {
	flags := flag.NewFlagSet(Command, flag.ContinueOnError)
	socket := flags.String("socket", "", "where to listen")
	start := flags.Bool("start", false, "go to the background")
	ready := flags.Int("ready", -1, "descriptor to say so on")
	idle := flags.Duration("idle", IdleTime, "end when of no use for this long")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *socket == "" || flags.NArg() > 0 {
		return errors.New("usage: keeper --socket PATH [--start]")
	}
	if *start {
		return background(*socket, *idle)
	}
	err := keep(*socket, *ready, *idle)
	if err != nil {
		err = fmt.Errorf("keeper on %s: %w", *socket, err)
		say(*ready, err.Error())
	}
	return err
}

// say tells who started this process; it is done with it then.
func say(ready int, what string) {
	if ready >= 0 {
		unix.Write(ready, []byte(what)) //nolint:errcheck // it may have lost patience
		unix.Close(ready)
	}
}

func keep(socket string, ready int, idle time.Duration) error {
	debug.SetMemoryLimit(memoryLimit)
	debug.SetGCPercent(gcPercent)
	runtime.GOMAXPROCS(1)
	if ready >= 0 {
		unix.CloseOnExec(ready)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	stop, err := stopSignal()
	if err != nil {
		return err
	}
	defer unix.Close(stop)
	lock, err := takeLock(socket + ".lock")
	if errors.Is(err, unix.EWOULDBLOCK) {
		say(ready, saysBusy)
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(lock) // last of all
	listener, err := listen(socket)
	if err != nil {
		return err
	}
	if ready >= 0 {
		unix.Ftruncate(unix.Stderr, 0) //nolint:errcheck // what an earlier one logged
	}
	say(ready, saysReady)
	debug.FreeOSMemory()
	s := newServer(listener, idle)
	if err := trim(); err != nil {
		s.log.Print("start: ", err)
	}
	err = s.run(stop)
	unix.Unlink(socket) //nolint:errcheck // the next one does
	unix.Close(listener)
	s.log.Print("of no use any more: ends")
	return err
}

// stopSignal returns a descriptor that becomes readable at SIGTERM. Other
// signals that end programs are for the daemon.
func stopSignal() (int, error) {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return -1, err
	}
	came := make(chan os.Signal, 1)
	signal.Notify(came, unix.SIGTERM)
	go func() {
		<-came
		unix.Close(pipe[1])
	}()
	return pipe[0], nil
}

// takeLock returns a descriptor whose end is the end of the lock.
func takeLock(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("lock %s: %w", path, err)
	}
	return fd, nil
}

// listen is for the holder of the lock: a socket that is there is nobody's.
func listen(socket string) (int, error) {
	if err := unix.Unlink(socket); err != nil && err != unix.ENOENT {
		return -1, fmt.Errorf("remove the old socket: %w", err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	mask := unix.Umask(0o177)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: socket})
	unix.Umask(mask)
	if err == nil {
		err = unix.Listen(fd, 64)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// background starts this program again as a keeper that is nobody's child once
// we end.
func background(socket string, idle time.Duration) error {
	said, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer said.Close()
	defer theirs.Close()
	logFile, err := os.OpenFile(socket+".log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	cmd := exec.Command("/proc/self/exe", Command, "--socket", socket, "--idle", idle.String(), "--ready", "3")
	if exe, err := os.Executable(); err == nil {
		cmd.Args[0] = exe // for ps
	}
	cmd.Dir = "/"
	cmd.Stderr = logFile
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the keeper: %w", err)
	}
	theirs.Close()
	what, err := io.ReadAll(said)
	switch {
	case err != nil:
		return err
	case string(what) == saysReady, string(what) == saysBusy:
		return nil
	case len(what) > 0:
		return errors.New(strings.TrimSpace(string(what)))
	}
	return fmt.Errorf("the keeper ended before it was ready; see %s.log", socket)
}
