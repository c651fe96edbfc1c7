package fusefs_test

import (
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"github.com/synapsefs/synapsefs/internal/fstest"
)

func TestPosix(t *testing.T) {
	for name, fn := range posixtest.All {
		t.Run(name, func(t *testing.T) {
			if name == "FcntlFlockLocksFile" {
				t.Skip("wants POSIX locks of one process to conflict, which they do nowhere; go-fuse skips it as well")
			}
			fn(t, fstest.Mount(t, fstest.Options{}).Dir)
		})
	}
}
