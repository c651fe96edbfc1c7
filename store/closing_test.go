package store

import (
	"testing"
	"time"
)

// TestP3WhatFollowsACloseDoesNotComeFirst: what is made after a file was closed is
// in no batch before the one that has the file, though the kernel releases it
// later; but not for long if it does not.
func TestP3WhatFollowsACloseDoesNotComeFirst(t *testing.T) {
	for _, released := range []bool{true, false} {
		clock := &testClock{now: time.Unix(1_700_000_000, 0)}
		o := Options{Scheduler: still{}, Memory: NewMemory(), Now: clock.Now}
		v := volumeWith(t, NewVolumeID(), o)
		mkdir(t, v, root, "before")
		clock.pass(time.Second)
		for { // what came earlier leaves
			if n := must(v.seal(false)); n == 0 {
				break
			}
		}
		w := create(t, v, root, "f").write("text", 0).flush()
		mkdir(t, v, root, "after")
		clock.pass(10 * time.Millisecond)
		if n := must(v.seal(false)); n != 0 {
			t.Errorf("%d ops left before the file", n)
		}
		want := 1
		if released {
			w.close()
			want = 2
		} else {
			clock.pass(sealWaits.release)
		}
		if n := must(v.seal(false)); n != want {
			t.Errorf("released %v: %d ops left, want %d", released, n, want)
		}
	}
}

// TestP3CallsWaitForCloses: a call returns from the wait when the file is
// published, and soon when it is not.
func TestP3CallsWaitForCloses(t *testing.T) {
	v := volumeWith(t, NewVolumeID(), longHold)
	v.AwaitClosed() // for nothing
	first, second := create(t, v, root, "first").write("x", 0).flush(), create(t, v, root, "second").write("x", 0).flush()
	v.AwaitClosed() // they stay open
	done := make(chan struct{})
	v.draftOf(first.node).flushedAt.Store(time.Now().Add(time.Hour).UnixNano())
	v.AwaitClosedBefore(second.node) // the other one was closed later
	go func() {
		v.AwaitClosed()
		close(done)
	}()
	first.close()
	second.close()
	<-done
	if v.draftOf(first.node) != nil || v.draftOf(second.node) != nil {
		t.Error("a file is not published")
	}
}

// Set back, the clock does not make anybody wait until it is again as late as it was.
func TestClosesWhenTheClockIsSetBack(t *testing.T) {
	v := volumeWith(t, NewVolumeID(), longHold)
	w := create(t, v, root, "f").write("x", 0).flush()
	defer w.close()
	before := time.Now()
	v.draftsMu.Lock()
	defer v.draftsMu.Unlock()
	now := before.Add(-time.Hour).Round(0)
	if since, until := v.closingLocked(now, before, callWaits); !since.IsZero() {
		t.Errorf("a call would wait %v", until.Sub(now))
	}
}
