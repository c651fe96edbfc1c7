package store

import "time"

// What somebody does after a close comes after the close for everybody (P3). But
// a file is published when the kernel releases it, which it asks for before close
// returns and we may get to later. So calls that change names wait a little for
// files that were closed before, and batches longer: no call is to be slow because
// somebody else closes a large file, or has a file open that another one of its
// descriptors was closed of.

// closeWaits bounds how long what was closed is waited for.
type closeWaits struct {
	release, publish time.Duration // for the release, and when that has come for the publication
}

var (
	callWaits = closeWaits{release: time.Millisecond, publish: 5 * time.Millisecond}
	sealWaits = closeWaits{release: 20 * time.Millisecond, publish: time.Second}
)

// closingLocked finds the file that was closed first of those that were closed
// before a time, are not published and are still waited for. since is zero if
// there is none. The caller holds draftsMu.
func (v *Volume) closingLocked(now, before time.Time, waits closeWaits) (since, until time.Time) {
	for _, d := range v.drafts {
		if !d.flushed.Load() {
			continue
		}
		at, most := time.Unix(0, d.flushedAt.Load()), waits.release
		if d.released.Load() {
			most = waits.publish
		}
		if at.After(now) { // the clock was set back: nobody knows how long ago it was
			continue
		}
		if end := at.Add(most); at.Before(before) && now.Before(end) && (since.IsZero() || at.Before(since)) {
			since, until = at, end
		}
	}
	return since, until
}

// AwaitClosed returns when the files that were closed before the call are
// published, or after some milliseconds.
func (v *Volume) AwaitClosed() { v.awaitClosed(time.Now()) }

// AwaitClosedBefore is AwaitClosed for files that were closed before a node's: a
// handle of that is about to be released.
func (v *Volume) AwaitClosedBefore(node NodeID) {
	if d := v.draftOf(node); d != nil && d.flushed.Load() {
		d.released.Store(true)
		v.awaitClosed(time.Unix(0, d.flushedAt.Load()))
	}
}

func (v *Volume) awaitClosed(before time.Time) {
	for {
		now := time.Now()
		v.draftsMu.Lock()
		since, until := v.closingLocked(now, before, callWaits)
		published := v.published
		v.draftsMu.Unlock()
		if since.IsZero() {
			return
		}
		t := time.NewTimer(until.Sub(now))
		select {
		case <-published:
		case <-t.C:
		}
		t.Stop()
	}
}
