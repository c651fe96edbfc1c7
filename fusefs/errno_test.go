package fusefs

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

func TestErrno(t *testing.T) {
	rows := []struct {
		err   error
		want  syscall.Errno
		known bool
	}{
		{nil, 0, true},
		{crdt.ErrNotExist, syscall.ENOENT, true},
		{crdt.ErrExist, syscall.EEXIST, true},
		{crdt.ErrNotDir, syscall.ENOTDIR, true},
		{crdt.ErrIsDir, syscall.EISDIR, true},
		{crdt.ErrNotEmpty, syscall.ENOTEMPTY, true},
		{crdt.ErrInvalid, syscall.EINVAL, true},
		{crdt.ErrNameTooLong, syscall.ENAMETOOLONG, true},
		{crdt.ErrClock, syscall.EIO, true},
		{store.ErrNoAttr, syscall.ENODATA, true},
		{store.ErrNoSpace, syscall.ENOSPC, true},
		{store.ErrStale, syscall.ESTALE, true},
		{store.ErrNotRegular, syscall.EINVAL, true},
		{store.ErrReadOnly, syscall.EROFS, true},
		{store.ErrTooBig, syscall.EFBIG, true},
		{store.ErrClosed, syscall.EIO, true},
		{store.ErrNotReady, syscall.EAGAIN, true},
		{store.ErrNoContent, syscall.EIO, true},
		{store.ErrDamaged, syscall.EIO, true},
		{context.Canceled, syscall.EINTR, true},
		{context.DeadlineExceeded, syscall.ETIMEDOUT, true},
		{unix.ENXIO, syscall.ENXIO, true},
		{unix.EOPNOTSUPP, syscall.EOPNOTSUPP, true},
		{fmt.Errorf("%w: %w", store.ErrNoSpace, unix.EDQUOT), syscall.ENOSPC, true},
		{errors.New("nobody has thought of this"), syscall.EIO, false},
	}
	tested := map[error]bool{}
	for _, row := range rows {
		tested[row.err] = true
		for _, err := range []error{row.err, wrap(row.err)} {
			if got, known := errno(err); got != row.want || known != row.known {
				t.Errorf("%v: %v %v, want %v %v", err, got, known, row.want, row.known)
			}
		}
	}
	for _, row := range errnos {
		if !tested[row.err] {
			t.Errorf("%v is not tested", row.err)
		}
	}
}

func wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("open volume: %w", err)
}
