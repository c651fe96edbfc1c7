package fusefs

import (
	"context"
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// errnos is the one table of what a program sees of an error.
var errnos = []struct {
	err   error
	errno syscall.Errno
}{
	{crdt.ErrNotExist, syscall.ENOENT},
	{crdt.ErrExist, syscall.EEXIST},
	{crdt.ErrNotDir, syscall.ENOTDIR},
	{crdt.ErrIsDir, syscall.EISDIR},
	{crdt.ErrNotEmpty, syscall.ENOTEMPTY},
	{crdt.ErrInvalid, syscall.EINVAL},
	{crdt.ErrNameTooLong, syscall.ENAMETOOLONG},
	{crdt.ErrClock, syscall.EIO},
	{store.ErrNoAttr, syscall.ENODATA},
	{store.ErrNoSpace, syscall.ENOSPC},
	{store.ErrStale, syscall.ESTALE},
	{store.ErrNotRegular, syscall.EINVAL},
	{store.ErrReadOnly, syscall.EROFS},
	{store.ErrTooBig, syscall.EFBIG},
	{store.ErrClosed, syscall.EIO},
	{store.ErrNotReady, syscall.EAGAIN},
	{store.ErrNoContent, syscall.EIO},
	{store.ErrDamaged, syscall.EIO},
	{context.Canceled, syscall.EINTR},
	{context.DeadlineExceeded, syscall.ETIMEDOUT},
}

// errno translates an error; known is false if nobody has thought of it.
func errno(err error) (e syscall.Errno, known bool) {
	if err == nil {
		return 0, true
	}
	for _, row := range errnos {
		if errors.Is(err, row.err) {
			return row.errno, true
		}
	}
	if errors.As(err, &e) && e != 0 {
		return e, true
	}
	return syscall.EIO, false
}

// status is what the kernel is told of an error.
func (fs *FS) status(what string, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	e, known := errno(err)
	if !known || e == syscall.EIO {
		fs.log.Error(what, "err", err)
	}
	return fuse.Status(e)
}
