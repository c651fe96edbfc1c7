//go:build faults

package kernel

import (
	"math/rand/v2"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// dieEvery is one in how many mutating requests kills this process, in a program
// built for tests.
var dieEvery, _ = strconv.Atoi(os.Getenv("SYNAPSEFS_FAULT_DIE_EVERY"))

// started spares a process that has only just begun: it would never get further.
var started = time.Now()

// mutating are CREATE, MKDIR, UNLINK, RMDIR, RENAME, LINK, SYMLINK, MKNOD,
// RENAME2, SETXATTR, REMOVEXATTR, OPEN and RELEASE.
var mutating = map[uint32]bool{
	35: true, 9: true, 10: true, 11: true, 12: true, 13: true, 6: true, 8: true,
	45: true, 21: true, 24: true, 14: true, 18: true,
}

// beforeReply kills this process now and then: what it did then is done, and not
// answered.
func beforeReply(in []byte) {
	if dieEvery > 0 && mutating[opcode(in)] && time.Since(started) > 100*time.Millisecond && rand.IntN(dieEvery) == 0 {
		unix.Kill(unix.Getpid(), unix.SIGKILL) //nolint:errcheck // it does not come back
		select {}
	}
}
