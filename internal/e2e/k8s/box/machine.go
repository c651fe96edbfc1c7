package box

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// initNode is a node's first process: it makes the machine's directories and
// cgroups, waits for the network and keeps the node's daemons running.
func initNode() error {
	number, err := strconv.Atoi(os.Getenv(nodeVar))
	if err != nil {
		return fmt.Errorf("%s: %w", nodeVar, err)
	}
	name, dir := nodeName(number), Dir()
	if err := unix.Sethostname([]byte(name)); err != nil {
		return err
	}
	if err := nodeMounts(filepath.Join(dir, name), os.Getenv(binVar), filepath.Join(dir, "log", name)); err != nil {
		return err
	}
	if err := makeCgroups(cgroup + "/" + name); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	daemons := map[string][]string{
		"containerd": {"containerd", "--config=/run/node/etc/containerd.toml", "--log-level=warn"},
		"kubelet": {"/run/bin/kubelet", "--config=/run/node/etc/kubelet.yaml", "--kubeconfig=/run/node/etc/kubeconfig",
			"--hostname-override=" + name, "--node-ip=" + nodeIP(number)},
	}
	running := map[int]string{}
	for {
		for what := range daemons {
			if err := startDaemon(running, what, daemons[what]); err != nil {
				return err
			}
		}
		pid, _, err := reap()
		if err != nil {
			return err
		}
		if _, ours := running[pid]; ours {
			delete(running, pid)
			time.Sleep(time.Second) // of a service manager's patience, not of the tests'
		}
	}
}

// startDaemon starts one that does not run.
func startDaemon(running map[int]string, what string, args []string) error {
	for _, r := range running {
		if r == what {
			return nil
		}
	}
	log, err := create("/var/log/" + what + ".log")
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	p, err := os.StartProcess(path, args, &os.ProcAttr{
		Env: []string{"PATH=/run/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Files: []*os.File{null, log, log},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	running[p.Pid] = what
	return p.Release()
}

// nodeMounts gives the node its own /proc, /run, /var/lib and /var/log. Mounts made
// below are seen by the pods that ask for them: shared, as a service manager has it.
func nodeMounts(disk, bin, log string) error {
	if err := ownMounts(); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := errors.Join(os.Mkdir("/run/node", 0o755), os.Mkdir("/run/bin", 0o755), os.MkdirAll(log, 0o755)); err != nil {
		return err
	}
	binds := [][2]string{{disk, "/run/node"}, {bin, "/run/bin"}, {log, "/var/log"}, {"/run/node/lib", "/var/lib"}}
	// kubelet sets these, which are no namespace's: let it find them set.
	for _, s := range []string{"vm/panic_on_oom", "vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops",
		"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"} {
		binds = append(binds, [2]string{"/run/node/etc/sys/" + s, "/proc/sys/" + s})
	}
	for _, b := range binds {
		if err := unix.Mount(b[0], b[1], "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s to %s: %w", b[0], b[1], err)
		}
	}
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// makeCgroups makes the node's cgroup, with all controllers for those below.
func makeCgroups(path string) error {
	for _, h := range hierarchies() {
		dir := h
		for _, part := range strings.Split(path, "/") {
			parent := dir
			dir = filepath.Join(dir, part)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			if controllers, err := os.ReadFile(filepath.Join(parent, "cgroup.controllers")); err == nil {
				for _, c := range strings.Fields(string(controllers)) {
					// One that is not to be had is kubelet's to complain of.
					os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+"+c), 0)
				}
			}
			for _, f := range []string{"cpuset.cpus", "cpuset.mems"} { // of v1, empty at first
				if v, err := os.ReadFile(filepath.Join(parent, f)); err == nil && filepath.Base(h) != "cgroup" {
					if err := os.WriteFile(filepath.Join(dir, f), v, 0); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}
