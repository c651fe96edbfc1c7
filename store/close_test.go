package store

import (
	"context"
	"errors"
	"sync"
	"testing"
)

// A restlessKV compacts for as many looks.
type restlessKV struct {
	kv
	looks  int
	looked func()
	failed error // of each sync
}

func (k *restlessKV) sync() error { return k.failed }

func (k *restlessKV) compacting() bool {
	if k.looked != nil {
		k.looked()
	}
	k.looks--
	return k.looks >= 0
}

// What a hand-over has programs wait for is done before, but not for ever.
func TestPrepareCloseWaitsForCompaction(t *testing.T) {
	k := &restlessKV{looks: 3}
	stopped := 0
	db := &DB{kv: k, stopReclaimer: sync.OnceFunc(func() { stopped++ })}
	if err := db.PrepareClose(t.Context()); err != nil || k.looks != -1 {
		t.Errorf("%v, with %d looks to go", err, k.looks)
	}
	ctx, cancel := context.WithCancel(t.Context())
	failed := errors.New("sync")
	k = &restlessKV{looks: 1 << 30, looked: cancel, failed: failed}
	db.kv = k
	if err := db.PrepareClose(ctx); !errors.Is(err, failed) || k.looks < 1<<29 {
		t.Errorf("%v, with %d looks to go", err, k.looks)
	}
	if stopped != 1 {
		t.Errorf("the reclaimer was stopped %d times", stopped)
	}
}
