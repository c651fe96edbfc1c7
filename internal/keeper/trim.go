package keeper

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// trim gives back what the start of the program took: a keeper lives long, and
// needs little of the program that it is a mode of. What it does need of the
// program's file is mapped again when it is touched.
func trim() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return err
	}
	var at, size uintptr // of the mapping that the lines are about; 0: not one to drop
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		var access string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &access); n == 3 {
			at, size = from, to-from
			if !strings.HasSuffix(line, exe+"\n") || strings.Contains(access, "w") {
				at = 0
			}
			continue
		}
		// What was changed, as by the linker, is not in the file.
		if fields := strings.Fields(line); at != 0 && fields[0] == "Anonymous:" && fields[1] == "0" {
			if err := drop(at, size); err != nil {
				return err
			}
		}
	}
	return nil
}

func drop(at, size uintptr) error {
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, at, size, unix.MADV_DONTNEED); errno != 0 {
		return fmt.Errorf("give memory back: %w", errno)
	}
	return nil
}
