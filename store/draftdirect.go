package store

import (
	"errors"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// lookDirect takes over what was written past us. The caller holds io for
// writing.
func (d *draft) lookDirect() error {
	dd := d.directly.Load()
	if dd == nil {
		return nil
	}
	_, mtime, changed, err := dd.Stat()
	d.rec.Dirty = d.rec.Dirty || changed
	if changed {
		d.touched(mtime)
	}
	return err
}

// touched takes over the mtime of a draft's file, unless it was set. The caller
// holds io for writing.
func (d *draft) touched(mtime crdt.Time) {
	if d.ctime.Before(mtime) && !(d.rec.MtimeSet && d.rec.Mtime == mtime) {
		d.ctime = mtime
	}
}

// seen is what of the draft shows in attributes now; nil if nothing ever did.
func (d *draft) seen() *draftStat {
	dd := d.directly.Load()
	st := d.stat.Load()
	if dd == nil {
		return st
	}
	size, mtime, changed, err := dd.Stat()
	if err != nil { // it has just ended
		return d.stat.Load()
	}
	seen := &draftStat{shown: changed || st != nil && st.shown, size: size, mtime: mtime, ctime: mtime}
	if st != nil && (seen.ctime.Before(st.ctime) || mtime == st.mtime) {
		seen.ctime = st.ctime
	}
	return seen
}

// errMapped says that a draft may still be written past us.
var errMapped = errors.New("the file is mapped for writing")

// quiet returns errMapped as long as somebody can write the draft past us. The
// caller holds io.
func (d *draft) quiet() error {
	dd := d.directly.Load()
	if dd == nil {
		return nil
	}
	ok, err := dd.Quiet()
	if err == nil && !ok {
		err = errMapped
	}
	return err
}

// recordMapped records a draft that nobody has open, for the next daemon to find:
// else only what has it open says that there is one. The caller holds mu.
func (v *Volume) recordMapped(d *draft) error {
	d.io.Lock()
	defer d.io.Unlock()
	dd := d.directly.Load()
	if dd == nil || d.rec.Direct != nil {
		return nil
	}
	at, err := dd.FileMtime()
	if err != nil {
		return err
	}
	d.rec.Direct = &at
	return v.saveDraft(d)
}

// The kernel lets go of a file a moment after it has said so; of a mapping,
// when its user does.
const (
	mappedRetry    = 200 * time.Microsecond
	maxMappedRetry = time.Second
)
