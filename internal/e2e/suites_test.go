package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/synapsefs/synapsefs/internal/playground"
)

var suitesFull = flag.Bool("suites.full", false, "run the suites of others at full length: half an hour")

// ci is short, or long with -suites.full.
func ci[T any](short, long T) T {
	if *suitesFull {
		return long
	}
	return short
}

// A suite is a program by others that finds faults of filesystems, or one whose
// work tells of them.
type suite struct {
	name  string
	needs []string // commands
	run   func(t *testing.T, dir string)
	// check looks at what run left, as another node shows it. nil: the trees
	// are compared, as always, and that is all.
	check func(t *testing.T, dir string)
}

var suites = []suite{
	{"programs", nil, runPrograms, nil},
	{"git", []string{"git"}, runGit, checkGit},
	{"dbench", []string{"dbench"}, runDbench, nil},
	{"sqlite", []string{"sqlite3"}, runSQLite, checkSQLite},
	{"fio", []string{"fio"}, runFio, checkFio},
	{"stress-ng", []string{"stress-ng"}, runStressNG, nil},
}

// Suites of others on a mount: they pass, what they leave is the same on the
// other nodes, and passes there.
func TestSuites(t *testing.T) {
	c := start(t, 3)
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			s.need(t)
			dir := s.on(c.Nodes[0])
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			s.run(t, dir)
			equal(t, c.Nodes...)
			for _, nd := range c.Nodes[1:] {
				if s.check != nil {
					s.check(t, s.on(nd))
				}
			}
			equal(t, c.Nodes...) // git status writes its index: what is on its way would come back
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
	}
	if tree := equal(t, c.Nodes...); tree.Files+tree.Other != 0 {
		t.Errorf("all was removed, and there are %+v", tree)
	}
}

func (s *suite) on(nd *playground.Node) string { return filepath.Join(nd.Mount, s.name) }

func (s *suite) need(t *testing.T) {
	t.Helper()
	for _, command := range s.needs {
		if _, err := exec.LookPath(command); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

// tool runs a program in dir and returns what it said. Its failure is the
// test's.
func tool(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	return toolWith(t, "", dir, name, args...)
}

// toolWith is tool with something to read.
func toolWith(t *testing.T, stdin, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdin, cmd.Dir = strings.NewReader(stdin), dir
	cmd.Env = append(os.Environ(), "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	out, err := cmd.CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		t.Errorf("%s: %v\n%s", cmd, err, strings.Join(lines[max(0, len(lines)-20):], "\n"))
	}
	return string(out)
}

// stressors are stress-ng's class "filesystem" but for those that work on
// something else than the directory they are given, such as /proc: getdent lists
// /tmp too, and waits there at a mount of somebody else whose daemon is dead.
var stressors = strings.Fields(`access chattr chdir chmod chown copy-file dentry dir dirdeep dirmany
	dnotify dup fallocate fcntl fiemap file-ioctl filename flock fpunch fsize fstat handle hdd
	inode-flags inotify io iomix lease link locka lockf lockofd mknod open rename symlink sync-file
	touch utime verity xattr`)

// They run one after the other at full length, else some at once.
func runStressNG(t *testing.T, dir string) {
	seconds, at := ci("1", "20"), ci(8, 1)
	for some := range slices.Chunk(stressors, at) {
		args := []string{"--verify", "--temp-path", dir, "--timeout", seconds, "--skip-silent",
			"--hdd-bytes", "16m", "--iomix-bytes", "16m", "--fallocate-bytes", "16m"}
		if !*suitesFull {
			args = append(args, "--fsize-ops", "100")
		}
		for _, s := range some {
			args = append(args, "--"+s, ci("1", "2"))
		}
		tool(t, dir, "stress-ng", args...)
	}
}

// fioJobs write with each of the ways that programs do.
var fioJobs = []string{
	"--name=sync --ioengine=sync --rw=randwrite --bsrange=1k-64k --bs_unaligned",
	"--name=seq --ioengine=psync --rw=write --bs=128k",
	"--name=mmap --ioengine=mmap --rw=randwrite --bs=4k",
	"--name=aio --ioengine=libaio --iodepth=8 --rw=randwrite --bs=4k",
	"--name=direct --ioengine=libaio --iodepth=8 --direct=1 --rw=randwrite --bs=4k",
	"--name=many --ioengine=psync --rw=randwrite --bs=4k --nrfiles=50 --openfiles=10 --fsync=16",
}

func fio(t *testing.T, dir string, verify ...string) {
	t.Helper()
	for _, job := range fioJobs {
		args := append(strings.Fields(job), "--directory="+dir, "--size="+ci("8m", "32m"), "--verify=crc32c",
			"--verify_fatal=1", "--verify_state_save=0", "--randseed=1")
		tool(t, "", "fio", append(args, verify...)...)
	}
}

func runFio(t *testing.T, dir string) { fio(t, dir, "--do_verify=1") }

func checkFio(t *testing.T, dir string) { fio(t, dir, "--verify_only") }

func runDbench(t *testing.T, dir string) {
	out := tool(t, dir, "dbench", "-D", dir, "-t", ci("5", "60"), ci("4", "8"))
	if strings.Contains(out, "ERROR") || !strings.Contains(out, "Throughput") {
		t.Errorf("dbench says:\n%s", out)
	}
}

// runGit makes a repository, clones it, commits, branches, merges, packs.
func runGit(t *testing.T, dir string) {
	origin, clone := filepath.Join(dir, "origin"), filepath.Join(dir, "clone")
	tool(t, dir, "git", "init", "-q", "-b", "main", origin)
	source, err := playground.OpenSource("")
	if err != nil {
		t.Fatal(err)
	}
	if err := source.Unpack(t.Context(), origin); err != nil {
		t.Fatal(err)
	}
	commit := func(repository, message string) {
		tool(t, repository, "git", "add", "-A")
		tool(t, repository, "git", "commit", "-q", "-m", message)
	}
	commit(origin, "all")
	tool(t, dir, "git", "clone", "-q", origin, clone)
	for i := range ci(10, 200) {
		branch := fmt.Sprintf("b%d", i)
		tool(t, clone, "git", "checkout", "-q", "-b", branch, "main")
		if err := os.WriteFile(filepath.Join(clone, branch), []byte(strings.Repeat(branch+"\n", i*100)), 0o644); err != nil {
			t.Fatal(err)
		}
		commit(clone, branch)
		tool(t, clone, "git", "checkout", "-q", "main")
		tool(t, clone, "git", "merge", "-q", "--no-ff", branch)
	}
	tool(t, clone, "git", "push", "-q", "origin", "main:pushed")
	for _, repository := range []string{origin, clone} {
		tool(t, repository, "git", "gc", "-q", "--aggressive", "--prune=now")
	}
	checkGit(t, dir)
}

func checkGit(t *testing.T, dir string) {
	for _, repository := range []string{"origin", "clone"} {
		repository = filepath.Join(dir, repository)
		git := []string{"-c", "safe.directory=*"}
		tool(t, repository, "git", append(git, "fsck", "--full", "--strict", "--no-progress")...)
		if out := tool(t, repository, "git", append(git, "status", "--porcelain")...); out != "" {
			t.Errorf("%s: git status says:\n%s", repository, out)
		}
	}
}
