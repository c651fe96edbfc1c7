package fusefs_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/synapsefs/synapsefs/fusefs"
	"github.com/synapsefs/synapsefs/internal/fstest"
)

// A mount of a group shows all files as the group's; what another mount shows,
// and what is stored, stay as they were, whatever asks for what is shown anyway.
func TestGroup(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	must(t, os.Mkdir(n.Dir+"/d", 0o755))
	writeFile(t, n.Dir+"/d/f", "x")
	must(t, os.Chmod(n.Dir+"/d/f", 0o600))
	must(t, os.Symlink("f", n.Dir+"/d/link"))
	gid := uint32(2000)
	g := n.MountAgain(fusefs.Options{Group: &gid, AllowOther: true})

	expect := func(path string, group, mode uint32) {
		t.Helper()
		must(t, n.Volume.Sync())
		must(t, errors.Join(n.Mount.WaitIdle(t.Context()), g.Mount.WaitIdle(t.Context())))
		if st := stat(t, path); st.Gid != group || st.Mode&0o7777 != mode {
			t.Errorf("%s: group %d, mode %o; want %d, %o", path, st.Gid, st.Mode&0o7777, group, mode)
		}
	}
	expect(g.Dir+"/d", gid, 0o775)
	expect(g.Dir+"/d/f", gid, 0o660)
	expect(n.Dir+"/d/f", 0, 0o600)

	// What kubelet and entry points do, at each start.
	before := n.Volume.Stats().Ops
	for _, words := range [][]string{{"chown", "-R", ":2000"}, {"chmod", "-R", "g+rwX"}} {
		if out, err := exec.Command(words[0], append(words[1:], g.Dir)...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v: %s", words, err, out)
		}
	}
	must(t, n.Volume.Sync())
	if ops := n.Volume.Stats().Ops; ops != before {
		t.Errorf("%d changes were stored", ops-before)
	}
	expect(n.Dir+"/d/f", 0, 0o600)

	// Somebody of the group.
	sh := func(script string) error {
		cmd := exec.Command("sh", "-c", script)
		cmd.Dir = "/"
		cmd.Env = append(os.Environ(), "DIR="+g.Dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000, Groups: []uint32{gid}}}
		out, err := cmd.CombinedOutput()
		t.Logf("%s: %s", script, out)
		return err
	}
	reachable(t, g.Dir)
	if err := sh(`umask 077; echo more >> $DIR/d/f && echo new > $DIR/d/new && mkdir $DIR/d/dir`); err != nil {
		t.Error(err)
	}
	expect(g.Dir+"/d/new", gid, 0o660)
	expect(n.Dir+"/d/new", gid, 0o600)
	expect(n.Dir+"/d/dir", gid, 0o700)
	if st := stat(t, n.Dir+"/d/new"); st.Uid != 1000 {
		t.Errorf("owner %d of what was made", st.Uid)
	}
	// What is really another is stored.
	must(t, os.Chown(g.Dir+"/d/new", 5, 7))
	must(t, os.Chmod(g.Dir+"/d/new", 0o644))
	expect(n.Dir+"/d/new", 7, 0o644)
	expect(g.Dir+"/d/new", gid, 0o664)
}

// Who is of the mount's group, and not of a file's, cannot give what runs the
// file the file's group: the kernel, which asks for the set-group-id bit to be
// set, knows the mount's only.
func TestGroupGivesNoOtherGroup(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	must(t, os.Mkdir(n.Dir+"/d", 0o777))
	must(t, syscall.Chmod(n.Dir+"/d", 0o2777))
	writeFile(t, n.Dir+"/mine", "x")
	must(t, os.Chown(n.Dir+"/mine", 1000, 0))
	gid := uint32(2000)
	g := n.MountAgain(fusefs.Options{Group: &gid, AllowOther: true})
	reachable(t, g.Dir)
	cmd := exec.Command("perl", "-e", `umask 0; chdir shift or die; chmod 02755, "mine"; sysopen F, "d/new", 0101, 02755; mkdir "d/dir", 0777; chmod 02777, "d/dir"; mkdir "own"; chmod 02777, "own"; sysopen G, "own/new", 0101, 0755; chmod 02755, "own/new"`, g.Dir)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000, Groups: []uint32{gid}}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	must(t, n.Volume.Sync())
	must(t, errors.Join(n.Mount.WaitIdle(t.Context()), g.Mount.WaitIdle(t.Context())))
	for path, want := range map[string]uint32{"mine": 0o755, "d/new": 0o755, "d/dir": 0o2777, "own": 0o2777, "own/new": 0o2755} {
		st := stat(t, n.Dir+"/"+path)
		t.Logf("%s: uid %d, gid %d, mode %o", path, st.Uid, st.Gid, st.Mode)
		if st.Mode&0o7777 != want {
			t.Errorf("%s of group %d has mode %o, want %o", path, st.Gid, st.Mode&0o7777, want)
		}
	}
}

// reachable lets others go through the directories above dir.
func reachable(t *testing.T, dir string) {
	t.Helper()
	for dir = filepath.Dir(dir); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755))
	}
}
