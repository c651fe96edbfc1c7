package fusefs

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
)

// maxSpare bounds the helpers that are started because calls of others are
// blocked: by a program that keeps a directory locked, mostly.
const maxSpare = 3

// helpers are the reveal helpers of a mount: one, and spare ones while it is
// blocked. Handlers ask it about their callers.
type helpers struct {
	all atomic.Pointer[[]*kernel.Helper] // the first one is always there

	mu      sync.Mutex // guards what follows; before shown.mu
	threads map[*kernel.Helper]uint32
	tell    func(threads []uint32) // fixed by follow
}

func newHelpers() *helpers {
	hs := &helpers{threads: make(map[*kernel.Helper]uint32)}
	hs.all.Store(&[]*kernel.Helper{kernel.NewHelper()})
	return hs
}

func (hs *helpers) first() *kernel.Helper { return (*hs.all.Load())[0] }

// is reports whether a request was made by one of them.
func (hs *helpers) is(h *fuse.InHeader) bool {
	for _, helper := range *hs.all.Load() {
		if helper.Is(h) {
			return true
		}
	}
	return false
}

func (hs *helpers) handshake(h *fuse.InHeader, attr string) bool {
	for _, helper := range *hs.all.Load() {
		if helper.Handshake(h, attr) {
			return true
		}
	}
	return false
}

// follow is kernel.Helper.Follow for all of them.
func (hs *helpers) follow(was []uint32, tell func(threads []uint32)) {
	hs.tell = tell
	helper := hs.first()
	helper.Follow(was, func(thread uint32) { hs.runs(helper, thread) })
}

// runs notes the thread of a helper, 0 if it is gone.
func (hs *helpers) runs(helper *kernel.Helper, thread uint32) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.threads[helper] = thread; thread == 0 {
		delete(hs.threads, helper)
	}
	var threads []uint32
	for _, helper := range *hs.all.Load() {
		if thread := hs.threads[helper]; thread != 0 {
			threads = append(threads, thread)
		}
	}
	if hs.tell != nil {
		hs.tell(threads)
	}
}

// add makes room for a spare helper, to be started.
func (hs *helpers) add() *kernel.Helper {
	helper := kernel.NewHelper()
	helper.Follow(nil, func(thread uint32) { hs.runs(helper, thread) })
	all := append(slices.Clone(*hs.all.Load()), helper)
	hs.all.Store(&all)
	return helper
}

// remove ends a spare helper.
func (hs *helpers) remove(helper *kernel.Helper) {
	helper.Close()
	all := slices.DeleteFunc(slices.Clone(*hs.all.Load()), func(h *kernel.Helper) bool { return h == helper })
	hs.all.Store(&all)
	hs.runs(helper, 0)
}

func (hs *helpers) close() {
	for _, helper := range *hs.all.Load() {
		helper.Close()
	}
}

// detached reports whether a helper cannot find the mount any more, and few can
// watch it.
func (m *Mounted) detached() bool {
	mounted, err := m.conn.Mounted()
	return err == nil && !mounted
}

func (m *Mounted) startHelper() bool {
	helper := m.fs.helpers.first()
	err := m.runHelper(helper)
	if err != nil {
		m.fs.log.Error("changes of other nodes will be shown without inotify events", "err", err)
	} else if helper.NeedsPaths() {
		m.fs.log.Info("reveal helper works without privileges")
	}
	return err == nil
}

func (m *Mounted) runHelper(helper *kernel.Helper) error {
	return helper.Start(m.conn, m.helperExec[0], m.helperExec[1:]...)
}

// helperRestart is how long to wait before a dead helper is started again.
const helperRestart = time.Second

// keepHelper starts the helper again when it dies before the mount ends.
func (m *Mounted) keepHelper() {
	for {
		if gone := m.fs.helpers.first().Gone(); gone != nil {
			select {
			case <-m.revealer.ctx.Done():
				return
			case <-gone:
			}
		}
		t := time.NewTimer(helperRestart)
		select {
		case <-m.revealer.ctx.Done():
			t.Stop()
			return
		case <-t.C:
			if m.detached() {
				return
			}
			m.startHelper()
		}
	}
}
