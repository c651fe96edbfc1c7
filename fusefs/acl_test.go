package fusefs_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/fstest"
	"github.com/synapsefs/synapsefs/store"
)

// getfacl is what that program says of a path, as one line.
func getfacl(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("getfacl", "-cpnE", path).Output()
	if err != nil {
		t.Fatalf("getfacl %s: %v", path, err)
	}
	return strings.Join(strings.Fields(string(out)), " ")
}

func setfacl(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("setfacl", args...).CombinedOutput(); err != nil {
		t.Fatalf("setfacl %v: %v\n%s", args, err, out)
	}
}

func expectACL(t *testing.T, path, want string, mode uint32) {
	t.Helper()
	if got := getfacl(t, path); got != want {
		t.Errorf("%s: ACL %s, want %s", path, got, want)
	}
	if got := stat(t, path).Mode & 0o7777; got != mode {
		t.Errorf("%s: mode %o, want %o", path, got, mode)
	}
}

// Mode and ACL say the same, whichever was set.
func TestACLAndMode(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	f := n.Dir + "/f"
	writeFile(t, f, "")
	expectACL(t, f, "user::rw- group::r-- other::r--", 0o644)
	setfacl(t, "-m", "u:7:rwx,g:8:r", f)
	expectACL(t, f, "user::rw- user:7:rwx group::r-- group:8:r-- mask::rwx other::r--", 0o674)
	must(t, os.Chmod(f, 0o610))
	expectACL(t, f, "user::rw- user:7:rwx group::r-- group:8:r-- mask::--x other::---", 0o610)
	setfacl(t, "-m", "m::r,o::w", f)
	expectACL(t, f, "user::rw- user:7:rwx group::r-- group:8:r-- mask::r-- other::-w-", 0o642)
	setfacl(t, "-b", f)
	expectACL(t, f, "user::rw- group::r-- other::-w-", 0o642)
	if names, err := listXattrs(f); err != nil || len(names) > 0 {
		t.Errorf("an ACL that the mode says is stored: %q %v", names, err)
	}
	setfacl(t, "-m", "u::r,g::x,o::-", f)
	expectACL(t, f, "user::r-- group::--x other::---", 0o410)
}

func listXattrs(path string) ([]string, error) {
	buf := make([]byte, 1<<16)
	n, err := unix.Listxattr(path, buf)
	if err != nil {
		return nil, err
	}
	names := strings.Split(string(buf[:n]), "\x00")
	return slices.DeleteFunc(names, func(s string) bool { return s == "" }), nil
}

func TestACLIsEnforced(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	must(t, os.Chmod(n.Dir, 0o755))
	must(t, os.Chmod(n.Dir+"/..", 0o755)) // let nobody in
	f := n.Dir + "/f"
	writeFile(t, f, "secret")
	must(t, os.Chmod(f, 0o600))
	if asNobody(t, n.Dir, "cat f") == nil {
		t.Error("nobody reads what is closed")
	}
	setfacl(t, "-m", "u:65534:r", f)
	must(t, asNobody(t, n.Dir, "cat f"))
	if asNobody(t, n.Dir, "echo >> f") == nil {
		t.Error("nobody writes what he may read")
	}
	setfacl(t, "-m", "u:65534:rw", f)
	must(t, asNobody(t, n.Dir, "echo >> f"))
	must(t, os.Chmod(f, 0o600)) // the mask takes it away
	if asNobody(t, n.Dir, "cat f") == nil {
		t.Error("nobody reads behind the mask")
	}
}

// A default ACL takes the place of the umask, and is handed down.
func TestDefaultACL(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	d := n.Dir + "/d"
	must(t, os.Mkdir(d, 0o755))
	setfacl(t, "-d", "-m", "u::rwx,u:7:rwx,g::rx,o::-", d)
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	must(t, os.WriteFile(d+"/f", nil, 0o666))
	must(t, os.Mkdir(d+"/s", 0o777))
	must(t, unix.Mkfifo(d+"/p", 0o622))
	must(t, os.Symlink("x", d+"/l"))
	fd, err := unix.Open(d, unix.O_TMPFILE|unix.O_WRONLY, 0o666)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, d+"/t", unix.AT_SYMLINK_FOLLOW))
	unix.Umask(old)
	const acl = "user::rw- user:7:rwx group::r-x mask::rw- other::---"
	expectACL(t, d+"/f", acl, 0o660)
	expectACL(t, d+"/t", acl, 0o660)
	expectACL(t, d+"/p", "user::rw- user:7:rwx group::r-x mask::-w- other::---", 0o620)
	const defaults = "default:user::rwx default:user:7:rwx default:group::r-x default:mask::rwx default:other::---"
	expectACL(t, d+"/s", "user::rwx user:7:rwx group::r-x mask::rwx other::--- "+defaults, 0o770)
	if s := stat(t, d+"/l"); s.Mode&0o777 != 0o777 {
		t.Errorf("symlink's mode %o", s.Mode)
	}
	setfacl(t, "-k", d+"/s")
	expectACL(t, d+"/s", "user::rwx user:7:rwx group::r-x mask::rwx other::---", 0o770)
}

// Without a default ACL the umask counts.
func TestUmask(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	defer unix.Umask(unix.Umask(0o027))
	must(t, os.WriteFile(n.Dir+"/f", nil, 0o666))
	must(t, os.Mkdir(n.Dir+"/d", 0o777))
	must(t, unix.Mkfifo(n.Dir+"/p", 0o666))
	for name, want := range map[string]uint32{"f": 0o640, "d": 0o750, "p": 0o640} {
		if got := stat(t, n.Dir+"/"+name).Mode & 0o777; got != want {
			t.Errorf("%s: mode %o, want %o", name, got, want)
		}
	}
}

// Who is not in the file's group loses its set-group-id bit with the ACL he
// sets, as with the mode.
func TestACLClearsSetGID(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	must(t, os.Chmod(n.Dir, 0o755))
	must(t, os.Chmod(n.Dir+"/..", 0o755))
	f := n.Dir + "/f"
	writeFile(t, f, "")
	must(t, os.Chown(f, 65534, 0))
	must(t, unix.Chmod(f, 0o2755))
	must(t, asNobody(t, n.Dir, "setfacl -m u:7:rx f"))
	if mode := stat(t, f).Mode & 0o7777; mode != 0o755 {
		t.Errorf("mode %o", mode)
	}
	must(t, unix.Chmod(f, 0o2755))
	setfacl(t, "-m", "u:8:rx", f)
	if mode := stat(t, f).Mode & 0o7777; mode != 0o2755 {
		t.Errorf("mode %o after root", mode)
	}
}

func TestBadACL(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	f := n.Dir + "/f"
	writeFile(t, f, "")
	entry := func(b []byte, tag, perm uint16) []byte {
		b = binary.LittleEndian.AppendUint16(b, tag)
		b = binary.LittleEndian.AppendUint16(b, perm)
		return binary.LittleEndian.AppendUint32(b, 1<<32-1)
	}
	head := []byte{2, 0, 0, 0}
	for what, value := range map[string][]byte{
		"other version": {9, 0, 0, 0},
		"no owner":      entry(entry(slices.Clone(head), 4, 4), 0x20, 4),
		"cut":           head[:3],
	} {
		if err := unix.Setxattr(f, store.ACLAccess, value, 0); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
	whole := entry(entry(entry(slices.Clone(head), 1, 6), 4, 4), 0x20, 4)
	if err := unix.Setxattr(f, store.ACLDefault, whole, 0); !errors.Is(err, syscall.EACCES) {
		t.Errorf("a file's default ACL: %v", err)
	}
	if err := unix.Setxattr(f, "system.other", nil, 0); !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Error(err)
	}
}

// ACLs travel, and concurrent changes of ACL and mode leave both in step.
func TestACLReplicates(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	writeFile(t, p.A.Dir+"/f", "")
	must(t, os.Mkdir(p.A.Dir+"/d", 0o755))
	setfacl(t, "-m", "u:7:rw", p.A.Dir+"/f")
	setfacl(t, "-d", "-m", "u:7:rwx", p.A.Dir+"/d")
	p.Sync()
	const acl = "user::rw- user:7:rw- group::r-- mask::rw- other::r--"
	expectACL(t, p.B.Dir+"/f", acl, 0o664)
	writeFile(t, p.B.Dir+"/d/g", "")
	p.Sync()
	expectACL(t, p.A.Dir+"/d/g", "user::rw- user:7:rwx group::r-x mask::r-- other::r--", 0o644)
	setfacl(t, "-m", "u:9:r", p.B.Dir+"/f")
	p.Sync()
	expectACL(t, p.A.Dir+"/f", "user::rw- user:7:rw- user:9:r-- group::r-- mask::rw- other::r--", 0o664)

	heal := p.Cut()
	setfacl(t, "-m", "u:5:rwx", p.A.Dir+"/f")
	must(t, os.Chmod(p.B.Dir+"/f", 0o640))
	heal()
	p.Sync()
	for _, n := range []*fstest.Node{p.A, p.B} {
		expectACL(t, n.Dir+"/f", "user::rw- user:5:rwx user:7:rw- user:9:r-- group::r-- mask::r-- other::---", 0o640)
	}
}

// What is so already is no change.
func TestACLNoOp(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	f := n.Dir + "/f"
	writeFile(t, f, "")
	must(t, os.Mkdir(n.Dir+"/d", 0o755))
	setfacl(t, "-m", "u:7:rw", f)
	setfacl(t, "-d", "-m", "u:7:rw", n.Dir+"/d")
	before := stat(t, f)
	if got := ops(t, n, func() {
		setfacl(t, "-m", "u:7:rw", f)
		setfacl(t, "-d", "-m", "u:7:rw", n.Dir+"/d")
	}); got != 0 {
		t.Errorf("%d ops", got)
	}
	if after := stat(t, f); after.Ctim != before.Ctim {
		t.Error("ctime changed")
	}
}
