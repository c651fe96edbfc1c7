package crdt

import "fmt"

// LostIno is a directory that is on every replica, like the root, has no name
// and is never reached from the root: the place of what has no other, because
// where it was is known to nobody any more. What is in it is listed as lost,
// restored by a rename and dismissed by an unlink.
const LostIno Ino = 2

// fixed reports whether the inode is one that every replica has from the start.
func (i Ino) fixed() bool { return i == RootIno || i == LostIno }

// FixedInodes are the inodes of an empty volume.
func FixedInodes() []*Inode {
	var out []*Inode
	for _, ino := range []Ino{RootIno, LostIno} {
		i := &Inode{Ino: ino, Kind: KindDir}
		i.Mode.Value = 0o755
		out = append(out, i)
	}
	return out
}

// LostName is the name in LostIno of an inode that had another name.
func LostName(ino Ino, name string) string {
	lost := fmt.Sprintf("%016x-%s", uint64(ino), name)
	return lost[:min(len(lost), MaxName)]
}
