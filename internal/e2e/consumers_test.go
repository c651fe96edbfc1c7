package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/synapsefs/synapsefs/internal/playground"
)

// A consumer is a program that watches files and knows nothing of synapsefs.
type consumer struct {
	name  string
	needs []string // commands
	file  string   // that it watches
	text  func(n int) string
	// start starts it on a directory. reacted says whether it has acted on the
	// n-th text.
	start func(t *testing.T, dir string) (reacted func(n int) bool)
}

func plainText(n int) string { return fmt.Sprintf("version %d\n", n) }

var consumers = []consumer{
	{"fsnotify", nil, "conf", plainText, startFsnotify},
	{"file_sd", nil, "targets.json", targets, startFileSD},
	{"inotifywait", []string{"inotifywait"}, "conf", plainText, startInotifywait},
	{"WatchService", []string{"java"}, "conf", plainText, startWatchService},
	{"nginx", []string{"/usr/sbin/nginx", "inotifywait"}, "site.conf", siteConf, startNginx},
}

// TestP10Consumers: each change that one node makes has its reaction by a program
// on another, whether the file is written in place or replaced.
func TestP10Consumers(t *testing.T) {
	c := start(t, 2)
	a, b := c.Nodes[0], c.Nodes[1]
	const changes = 50
	for _, consumer := range consumers {
		t.Run(consumer.name, func(t *testing.T) {
			if consumer.name == "WatchService" && !haveJava() {
				t.Skip("no JDK here") // it is large, and not among what setup installs
			}
			needs := suite{needs: consumer.needs}
			needs.need(t)
			dir := filepath.Join(a.Mount, consumer.name)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, consumer.file)
			if err := os.WriteFile(path, []byte(consumer.text(0)), 0o644); err != nil {
				t.Fatal(err)
			}
			equal(t, a, b)
			reacted := consumer.start(t, filepath.Join(b.Mount, consumer.name))
			var longest time.Duration
			for n := 1; n <= changes && !t.Failed(); n++ {
				if err := rewriteInTurn(path, consumer.text(n), n); err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				until(t, fmt.Sprintf("reaction to change %d", n), func() bool { return reacted(n) })
				longest = max(longest, time.Since(begin))
			}
			t.Logf("%d changes, the longest took %v", changes, longest)
		})
	}
}

func haveJava() bool {
	out, err := exec.Command("java", "--list-modules").Output()
	return err == nil && strings.Contains(string(out), "jdk.compiler")
}

// rewriteInTurn writes in steps from O_TRUNC, or replaces by a rename, or removes
// and makes anew, as programs do.
func rewriteInTurn(path, text string, n int) error {
	tmp := filepath.Join(filepath.Dir(path), ".tmp"+strconv.Itoa(n))
	switch n % 3 {
	case 1:
		return errors.Join(os.WriteFile(tmp, []byte(text), 0o644), os.Rename(tmp, path))
	case 2:
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	for part := range 8 {
		_, err := io.WriteString(f, text[len(text)*part/8:len(text)*(part+1)/8])
		if err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}

// onEvent calls changed for each event in a directory that concerns more than
// attributes, and for each that was lost an error.
func onEvent(t *testing.T, dir string, changed func(e fsnotify.Event)) {
	t.Helper()
	w, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add(dir); err != nil {
		t.Fatal(err)
	}
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for e := range w.Events {
			if e.Op != fsnotify.Chmod {
				changed(e)
			}
		}
	})
	tasks.Go(func() {
		for err := range w.Errors {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		w.Close()
		tasks.Wait()
	})
}

// lastSeen is the newest text that a consumer has acted on.
type lastSeen struct{ n atomic.Int64 }

func (l *lastSeen) reacted(n int) bool { return l.n.Load() == int64(n) }

// take reads the number in a text.
func (l *lastSeen) take(text string) error {
	n, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(text, "version ")))
	l.n.Store(int64(n))
	return err
}

func startFsnotify(t *testing.T, dir string) func(int) bool {
	var last lastSeen
	onEvent(t, dir, func(e fsnotify.Event) {
		if filepath.Base(e.Name) != "conf" || !e.Has(fsnotify.Write) && !e.Has(fsnotify.Create) {
			return
		}
		b, err := os.ReadFile(e.Name)
		if err == nil {
			err = last.take(string(b))
		}
		if err != nil {
			t.Errorf("at %v: %q, %v", e, b, err)
		}
	})
	return last.reacted
}

// targets are 200 KiB of JSON, so that half of it is none.
func targets(n int) string {
	b, err := json.Marshal([]map[string]any{{
		"targets": []string{strconv.Itoa(n), strings.Repeat("host.example.com:9100 ", 9000)},
	}})
	if err != nil {
		panic(err)
	}
	return string(b)
}

// startFileSD reads all files at each event of their directory, as Prometheus
// does for its file_sd.
func startFileSD(t *testing.T, dir string) func(int) bool {
	var last lastSeen
	onEvent(t, dir, func(e fsnotify.Event) {
		paths, err := filepath.Glob(filepath.Join(dir, "*.json"))
		if err != nil {
			t.Error(err)
		}
		for _, path := range paths {
			b, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed, to be made anew
			}
			var groups []struct{ Targets []string }
			if err == nil {
				err = json.Unmarshal(b, &groups)
			}
			if err == nil {
				err = last.take(groups[0].Targets[0])
			}
			if err != nil {
				t.Errorf("at %v: %d bytes, %v", e, len(b), err)
			}
		}
	})
	return last.reacted
}

// startLines starts a program and calls said for each line that it prints.
func startLines(t *testing.T, said func(line string), name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stderr, cmd.SysProcAttr = os.Stderr, &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	var task sync.WaitGroup
	task.Go(func() {
		first := sync.OnceFunc(func() { close(ready) })
		defer first()
		for s := bufio.NewScanner(out); s.Scan(); {
			if s.Text() == "ready" {
				first()
			} else {
				said(s.Text())
			}
		}
	})
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) //nolint:errcheck // it may have ended
		task.Wait()
		cmd.Wait() //nolint:errcheck // it was killed
	})
	<-ready
}

// waiting is a shell command that runs inotifywait, says "ready" when it watches,
// and passes on the names that it prints.
const waiting = `inotifywait -m -e close_write -e moved_to --format %f "$0" 2>&1 |
	while read -r line; do case $line in "Watches established.") echo ready;; Setting*) ;; *) `

func startInotifywait(t *testing.T, dir string) func(int) bool {
	var last lastSeen
	startLines(t, func(name string) {
		if name != "conf" {
			return
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = last.take(string(b))
		}
		if err != nil {
			t.Errorf("%q, %v", b, err)
		}
	}, "bash", "-c", waiting+`echo "$line";; esac; done`, dir)
	return last.reacted
}

const watchServiceSource = `
import java.nio.file.*;
import static java.nio.file.StandardWatchEventKinds.*;

public class Watch {
	public static void main(String[] args) throws Exception {
		Path dir = Path.of(args[0]);
		WatchService service = dir.getFileSystem().newWatchService();
		dir.register(service, ENTRY_CREATE, ENTRY_MODIFY, ENTRY_DELETE);
		System.out.println("ready");
		while (true) {
			WatchKey key = service.take();
			for (WatchEvent<?> event : key.pollEvents()) {
				if (event.kind() == OVERFLOW || event.kind() == ENTRY_DELETE || !event.context().toString().equals("conf"))
					continue;
				System.out.println(Files.readString(dir.resolve("conf")).strip());
			}
			key.reset();
		}
	}
}
`

func startWatchService(t *testing.T, dir string) func(int) bool {
	source := filepath.Join(t.TempDir(), "Watch.java")
	if err := os.WriteFile(source, []byte(watchServiceSource), 0o644); err != nil {
		t.Fatal(err)
	}
	var last lastSeen
	startLines(t, func(line string) {
		if err := last.take(line); err != nil {
			t.Errorf("it says %q", line)
		}
	}, "java", source, dir)
	return last.reacted
}

func siteConf(n int) string { return fmt.Sprintf("location / { return 200 \"version %d\\n\"; }\n", n) }

// startNginx serves from a configuration that it includes, and is reloaded by a
// script at each change.
func startNginx(t *testing.T, dir string) func(int) bool {
	address, err := playground.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	own := t.TempDir()
	conf := filepath.Join(own, "nginx.conf")
	text := fmt.Sprintf(`daemon off; master_process on; worker_processes 1; user root; pid %[1]s/pid; error_log %[1]s/error.log warn;
events { worker_connections 64; }
http { access_log off; server { listen %[2]s; include %[3]s/*.conf; } }
`, own, address, dir)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	server := exec.Command("/usr/sbin/nginx", "-p", own, "-c", conf)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Process.Signal(os.Interrupt) //nolint:errcheck // it may have ended
		server.Wait()                       //nolint:errcheck // how it ends does not matter
		if b, _ := os.ReadFile(filepath.Join(own, "error.log")); len(b) > 0 {
			t.Errorf("nginx says:\n%s", b)
		}
	})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	reacted := func(n int) bool {
		answer, err := client.Get("http://" + address)
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		b, err := io.ReadAll(answer.Body)
		return err == nil && string(b) == plainText(n)
	}
	until(t, "nginx", func() bool { return reacted(0) })
	startLines(t, func(line string) { t.Errorf("nginx -s reload: %s", line) },
		"bash", "-c", waiting+`/usr/sbin/nginx -p "$1" -c "$2" -s reload >/dev/null 2>&1 || echo "$?";; esac; done`, dir, own, conf)
	return reacted
}
