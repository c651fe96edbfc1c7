package box

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What a process of this program is, and what it was told, are in its environment.
const (
	roleVar = "SYNAPSEFS_BOX_ROLE"
	dirVar  = "SYNAPSEFS_BOX_DIR"
	binVar  = "SYNAPSEFS_BOX_BIN"

	roleInit = "init" // first process of the box
	roleTest = "test" // runs the tests, in the box
	roleNode = "node" // first process of a node
)

// Main is all that main or TestMain does: inside of a new box it runs run, and
// returns what that returned, when nothing of the box is left.
func Main(run func() int) int {
	var err error
	switch os.Getenv(roleVar) {
	case roleInit:
		err = initBox()
	case roleNode:
		err = initNode()
	case roleTest:
		return run()
	default:
		var code int
		if code, err = enter(); err == nil {
			return code
		}
	}
	fmt.Fprintln(os.Stderr, "box:", err)
	return 1
}

// enter runs this program again as the first process of a box.
func enter() (code int, err error) {
	if os.Getuid() != 0 {
		return 0, errors.New("a cluster on this machine needs root")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return 0, fmt.Errorf("no place for the cluster: set HOME or XDG_CACHE_HOME: %w", err)
	}
	cache = filepath.Join(cache, "synapsefs", "k8s")
	dir := filepath.Join(cache, "state")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return 0, err
	}
	lock, err := os.Create(filepath.Join(cache, "lock"))
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return 0, fmt.Errorf("another cluster runs in %s: %w", cache, err)
	}
	bin, err := programs(cache)
	if err != nil {
		return 0, err
	}
	// What was killed with no time for it is cleaned up here.
	if err := clean(dir); err != nil {
		return 0, err
	}
	if err := goBuild(".", filepath.Join(dir, "bin")+"/", "", "./sidecar", "./load"); err != nil {
		return 0, err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	// The box dies with the thread that made it.
	runtime.LockOSThread()
	cmd := again(roleInit, unix.CLONE_NEWPID|unix.CLONE_NEWNS|unix.CLONE_NEWNET|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC,
		dirVar+"="+dir, binVar+"="+bin)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-stop:
		cmd.Process.Kill()
		<-ended
		code = 130
	case err = <-ended:
		if _, failed := errors.AsType[*exec.ExitError](err); failed {
			code, err = max(cmd.ProcessState.ExitCode(), 1), nil
		}
	}
	if code != 0 {
		kept := filepath.Join(cache, "log")
		os.RemoveAll(kept)
		if os.Rename(filepath.Join(dir, "log"), kept) == nil {
			fmt.Fprintln(os.Stderr, "box: what the cluster said is in", kept)
		}
	}
	return code, errors.Join(err, clean(dir))
}

// again is this program in another role and in namespaces of its own.
func again(role string, namespaces uintptr, env ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(append(os.Environ(), roleVar+"="+role), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces, Pdeathsig: unix.SIGKILL}
	return cmd
}

// initBox makes the box's mounts, runs the tests and ends with them.
func initBox() error {
	if err := ownMounts(); err != nil {
		return err
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	os.Setenv(roleVar, roleTest)
	p, err := os.StartProcess(self, os.Args, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return err
	}
	for {
		pid, status, err := reap()
		if err != nil {
			return err
		}
		if pid == p.Pid {
			os.Exit(max(status.ExitStatus(), -status.ExitStatus()))
		}
	}
}

// ownMounts parts this process's mounts from the others', and drops copies of FUSE
// mounts: they would keep these alive after their umount.
func ownMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	table, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer table.Close()
	var fuse []string
	for lines := bufio.NewScanner(table); lines.Scan(); {
		fields, rest, _ := strings.Cut(lines.Text(), " - ")
		if strings.HasPrefix(rest, "fuse") && !strings.HasPrefix(rest, "fusectl") {
			fuse = append(fuse, unescape(strings.Fields(fields)[4]))
		}
	}
	for i := len(fuse) - 1; i >= 0; i-- {
		if err := unix.Unmount(fuse[i], unix.MNT_DETACH); err != nil && err != unix.EINVAL {
			return fmt.Errorf("drop the copy of %s: %w", fuse[i], err)
		}
	}
	return nil
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

// reap waits for a child, of its own or come to it as the first process.
func reap() (int, syscall.WaitStatus, error) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if err != syscall.EINTR {
			return pid, status, err
		}
	}
}

// cgroup is that of all nodes, below each hierarchy.
const cgroup = "synapsefs-box"

// hierarchies returns where cgroups are: in one tree, or in one a controller.
func hierarchies() []string {
	const top = "/sys/fs/cgroup"
	if _, err := os.Stat(top + "/cgroup.controllers"); err == nil {
		return []string{top}
	}
	trees, _ := filepath.Glob(top + "/*/cgroup.procs")
	for i := range trees {
		trees[i] = filepath.Dir(trees[i])
	}
	return trees
}

// clean removes what a box leaves: its cgroups, as soon as all its processes have
// ended, and its directory.
func clean(dir string) error {
	for _, h := range hierarchies() {
		deadline := time.Now().Add(30 * time.Second)
		for {
			err := removeCgroup(filepath.Join(h, cgroup))
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("clean up: %w", err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return os.RemoveAll(dir)
}

func removeCgroup(path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
