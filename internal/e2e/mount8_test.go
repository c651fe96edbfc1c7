package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/synapsefs/synapsefs/internal/playground"
)

// A mountSpace is a mount namespace with the helpers of mount(8) and an fstab
// of its own, so that the host's stay as they are.
type mountSpace struct {
	t     *testing.T
	enter []string
	env   []string
}

func newMountSpace(t *testing.T) *mountSpace {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("mount namespaces need root")
		}
		t.Skip("mount namespaces need root")
	}
	holder := exec.Command("unshare", "--mount", "--propagation", "private", "--", "sh", "-c", "echo ready; exec cat")
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		holder.Wait() //nolint:errcheck // cat has read to the end
	})
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	s := &mountSpace{t: t, enter: []string{"nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", holder.Process.Pid), "--"}}
	s.run(0, "mount -t tmpfs sbin /usr/sbin")
	for _, name := range []string{"mount.synapsefs", "mount.fuse.synapsefs"} {
		s.run(0, "ln -s "+binary+" /usr/sbin/"+name)
	}
	return s
}

// run runs a shell command in the namespace, checks its exit code, and returns
// what it printed.
func (s *mountSpace) run(code int, command string) string {
	s.t.Helper()
	words := append(append([]string{}, s.enter[1:]...), "sh", "-c", command)
	cmd := exec.Command(s.enter[0], words...)
	cmd.Env = append(os.Environ(), s.env...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		s.t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		s.t.Errorf("%s: exit %d, want %d; it says %q", command, got, code, out)
	}
	return string(out)
}

// says is run for a command that is to print something.
func (s *mountSpace) says(code int, command, want string) {
	s.t.Helper()
	if out := s.run(code, command); !strings.Contains(out, want) {
		s.t.Errorf("%s: it says %q, want %q in it", command, out, want)
	}
}

// flags returns the options that the kernel shows for the top mount at dir.
func (s *mountSpace) flags(dir string) string {
	s.t.Helper()
	lines := strings.Split(strings.TrimSpace(s.run(0, "grep ' "+dir+" ' /proc/self/mountinfo")), "\n")
	return strings.Fields(lines[len(lines)-1])[5]
}

func (s *mountSpace) wantFlags(dir, want string) {
	s.t.Helper()
	if got := s.flags(dir); got != want {
		s.t.Errorf("mountinfo shows %s, want %s", got, want)
	}
}

// start runs a node in the namespace.
func (s *mountSpace) start() *playground.Node {
	s.t.Helper()
	c := prepare(s.t, 0)
	// A loopback address of its own: nodes of a host have fixed ports.
	address := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(255), 1+rand.IntN(254))
	c.Hosts = []playground.Host{{Address: address, Enter: s.enter}}
	nd, err := c.Add()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := c.Start(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	s.env = []string{"SYNAPSEFS_SOCKET=" + nd.Socket}
	return nd
}

// mount -t synapsefs with its options, its errors and its exit codes.
func TestMountCommand(t *testing.T) {
	s := newMountSpace(t)
	nd := s.start()
	dir := nd.Mount
	mount := "mount -t synapsefs configs " + dir

	s.says(32, mount, `mount.synapsefs: mount volume "configs": no such volume`)
	s.says(1, mount+" -o create,bogus=1", `mount option "bogus=1" is not known`)
	s.says(1, mount+" -o timeout=soon", "want a time like 30s")
	s.says(32, "mount -t synapsefs configs "+dir+"/none -o create", "mountpoint does not exist")
	s.says(32, mount+" -o create,socket=/nowhere", "the daemon is not running")
	s.run(0, mount+" -f -o create")
	s.says(32, mount, "no such volume") // -f did nothing

	s.run(0, mount+" -s -o create,bogus=1,nofail,_netdev,x-systemd.automount,comment=mine,noexec,nosuid,noatime,socket="+nd.Socket)
	s.wantFlags(dir, "rw,nosuid,noexec,noatime")
	s.says(32, mount, "mounted here already")
	s.run(0, "cp /bin/true "+dir+"/true")
	s.says(126, dir+"/true", "Permission denied")
	s.run(0, "umount "+dir)
	s.says(2, "ls "+dir, "Transport endpoint is not connected") // the guard (P11)

	s.run(0, mount) // over the guard
	s.wantFlags(dir, "rw,relatime")
	s.run(0, dir+"/true")
	s.run(0, "mknod "+dir+"/null c 1 3 && echo gone > "+dir+"/null")
	s.run(0, "umount "+dir+" && umount "+dir)
	s.run(0, "rmdir "+dir+" && mkdir "+dir)

	s.run(0, "ln -s "+dir+" "+dir+".link")
	s.run(0, "mount -t fuse.synapsefs -o ro,nodev,nosymfollow configs "+dir+".link") // as /proc/mounts names the type
	s.wantFlags(dir, "ro,nodev,relatime,nosymfollow")
	s.says(1, "rm "+dir+"/true", "Read-only file system")
	s.says(32, "mount -o remount,rw "+dir, "what was mounted read-only stays so; unmount it and mount again")
	s.run(0, "umount "+dir)

	// A name that exists where mount(8) is called becomes a path.
	s.run(0, "mkdir "+dir+".d "+dir+".d/configs && cd "+dir+".d && "+mount)
	s.run(0, "umount "+dir)
}

// mount -o remount.
func TestRemountCommand(t *testing.T) {
	s := newMountSpace(t)
	dir := s.start().Mount
	s.run(0, "mount -t synapsefs -o create,nosuid,nodev configs "+dir)
	file := filepath.Join(dir, "f")
	for range 2 {
		s.run(0, "echo x >> "+file)
		s.run(0, "mount -o remount,ro "+dir)
		s.wantFlags(dir, "ro,nosuid,nodev,relatime")
		s.says(2, "echo x >> "+file, "Read-only file system")
		s.says(0, "synapsefs() { "+binary+` "$@"; }; synapsefs mounts`, "yes")
		s.run(0, "mount -o remount,rw "+dir)
		s.wantFlags(dir, "rw,nosuid,nodev,relatime")
	}
	s.says(32, "exec 5>>"+file+"; mount -o remount,ro "+dir, "mount is in use, for writing")
	s.run(0, "echo x >> "+file)
	s.run(0, "mount -o remount,noexec,noatime,suid "+dir)
	s.wantFlags(dir, "rw,nodev,noexec,noatime")
	if got := s.run(0, "cat "+file); got != "x\nx\nx\n" {
		t.Errorf("the file holds %q", got)
	}
	s.run(0, "umount "+dir)
	s.says(32, "/usr/sbin/mount.synapsefs configs "+dir+" -o remount,ro", "nothing of synapsefs is mounted there")
}

// A line in /etc/fstab.
func TestFstab(t *testing.T) {
	s := newMountSpace(t)
	dir := s.start().Mount
	s.run(0, "echo 'configs "+dir+" synapsefs create,nosuid,nofail,_netdev,x-systemd.after=synapsefs.service 0 0' > "+dir+".fstab"+
		" && mount --bind "+dir+".fstab /etc/fstab")
	s.run(0, "mount "+dir)
	s.wantFlags(dir, "rw,nosuid,relatime")
	s.run(0, "mount -a") // it is there already
	s.run(0, "mount -o remount,ro "+dir)
	s.wantFlags(dir, "ro,nosuid,relatime")
	s.run(0, "umount "+dir)
	s.run(0, "mount -a")
	s.wantFlags(dir, "rw,nosuid,relatime")
	s.run(0, "echo x > "+dir+"/f")
	s.run(0, "umount "+dir)
}
