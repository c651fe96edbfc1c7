package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// An Op is what the helper is asked to do.
type Op uint8

// The calls a helper can make. A name is never followed if it is a symlink.
const (
	OpHandshake   Op = iota + 1 // internal: read attribute Name of the root
	OpCreate                    // create Name with Mode, touch its mtime, close: CREATE OPEN MODIFY CLOSE_WRITE
	OpCreateEmpty               // create Name with Mode, close: CREATE OPEN CLOSE_WRITE
	OpMkdir                     // Name, Mode
	OpMknod                     // Name, Mode with type, Rdev
	OpSymlink                   // Name, Target
	OpLink                      // Name becomes a link to Name2 in Dir2
	OpUnlink                    // Name
	OpRmdir                     // Name
	OpRename                    // Name to Name2 in Dir2, Flags of renameat2
	OpModify                    // open Name for writing, touch its mtime, close: OPEN MODIFY CLOSE_WRITE
	OpHold                      // open Name for writing and keep it as Hold: OPEN
	OpFinish                    // touch the mtime of what is kept as Hold, close it: MODIFY CLOSE_WRITE
	OpChmod                     // Name, Mode: ATTRIB
	OpTouch                     // both times of Name: ATTRIB
	OpModifyPath                // the mtime of Name without opening it: MODIFY alone, for files with an x bit
	opLast        = OpModifyPath
)

// A Dir names a directory of the mount. Node and Generation are those of the
// kernel; opening by them survives renames, and may send LOOKUPs of "." and
// ".." and a READDIR in the helper's name. Path, relative to the root, is
// used instead by a helper without the privilege (Helper.NeedsPaths).
type Dir struct {
	Node       uint64
	Generation uint32
	Path       string
}

// A Request is one call for the helper. Which fields count depends on Op.
type Request struct {
	Op          Op
	Dir, Dir2   Dir
	Name, Name2 string
	Target      string
	Mode, Rdev  uint32
	Flags       uint32
	Hold        uint64
}

const (
	maxFrame    = 32 << 10
	replySize   = 8
	helloSize   = 8
	helloPaths  = 1 << 0 // the helper cannot open by node id
	helperFD    = 3
	helperEnv   = "SYNAPSEFS_REVEAL_HELPER"
	attrTrusted = "trusted."
	attrUser    = "user.synapsefs."
)

var errFrame = errors.New("malformed frame")

// Frames, in the machine's byte order, one a packet:
//
//	setup:   mount id u32, dev string, mountpoint string
//	hello:   errno u32, flags u32
//	request: id u32, op u8, mode, rdev, flags u32, hold u64,
//	         dir, dir2 (node u64, generation u32, path string),
//	         name, name2, target string
//	reply:   id u32, errno u32
//
// A string is its length u16 and its bytes.
type frame struct {
	b   []byte
	bad bool // reading ran over the end
}

func (f *frame) putString(s string) {
	f.b = binary.NativeEndian.AppendUint16(f.b, uint16(len(s)))
	f.b = append(f.b, s...)
}

func (f *frame) take(n int) []byte {
	if f.bad || len(f.b) < n {
		f.bad = true
		return make([]byte, n)
	}
	head := f.b[:n]
	f.b = f.b[n:]
	return head
}

func (f *frame) u32() uint32 { return binary.NativeEndian.Uint32(f.take(4)) }
func (f *frame) u64() uint64 { return binary.NativeEndian.Uint64(f.take(8)) }

func (f *frame) string() string {
	n := int(binary.NativeEndian.Uint16(f.take(2)))
	return string(f.take(n))
}

func (f *frame) putDir(d Dir) {
	f.b = binary.NativeEndian.AppendUint64(f.b, d.Node)
	f.b = binary.NativeEndian.AppendUint32(f.b, d.Generation)
	f.putString(d.Path)
}

func (f *frame) dir() Dir {
	return Dir{Node: f.u64(), Generation: f.u32(), Path: f.string()}
}

func encodeRequest(id uint32, r *Request) []byte {
	f := frame{b: make([]byte, 0, 128)}
	f.b = binary.NativeEndian.AppendUint32(f.b, id)
	f.b = append(f.b, byte(r.Op))
	f.b = binary.NativeEndian.AppendUint32(f.b, r.Mode)
	f.b = binary.NativeEndian.AppendUint32(f.b, r.Rdev)
	f.b = binary.NativeEndian.AppendUint32(f.b, r.Flags)
	f.b = binary.NativeEndian.AppendUint64(f.b, r.Hold)
	f.putDir(r.Dir)
	f.putDir(r.Dir2)
	f.putString(r.Name)
	f.putString(r.Name2)
	f.putString(r.Target)
	return f.b
}

func decodeRequest(b []byte) (id uint32, r Request, err error) {
	f := frame{b: b}
	id = f.u32()
	r.Op = Op(f.take(1)[0])
	r.Mode, r.Rdev, r.Flags, r.Hold = f.u32(), f.u32(), f.u32(), f.u64()
	r.Dir, r.Dir2 = f.dir(), f.dir()
	r.Name, r.Name2, r.Target = f.string(), f.string(), f.string()
	if f.bad || len(f.b) != 0 {
		return 0, Request{}, errFrame
	}
	return id, r, nil
}

// check refuses what would leave the directory or not fit a frame.
func (r *Request) check() error {
	if r.Op == 0 || r.Op > opLast {
		return fmt.Errorf("reveal: unknown op %d", r.Op)
	}
	needs2 := r.Op == OpLink || r.Op == OpRename
	if r.Op != OpFinish && !plainName(r.Name) || needs2 && !plainName(r.Name2) {
		return fmt.Errorf("reveal: names %q, %q: %w", r.Name, r.Name2, unix.EINVAL)
	}
	if len(r.Dir.Path) >= unix.PathMax || len(r.Dir2.Path) >= unix.PathMax || len(r.Target) >= unix.PathMax {
		return fmt.Errorf("reveal: %w", unix.ENAMETOOLONG)
	}
	return nil
}

func plainName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= unix.NAME_MAX &&
		!strings.ContainsAny(name, "/\x00")
}
