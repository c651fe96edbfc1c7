package fusefs

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// KnownSuffix behind the name of a ledger names a file that a planned
// hand-over leaves beside it: what the kernel knows, so that the next daemon need
// not ask it for each node while programs wait. It is for the very next daemon of
// the connection, which takes it away before it serves anything; after a kill
// there is none. Lost or torn, it costs the asking.
//
// It holds, little-endian, its format, the connection's epoch, how many daemons it
// had, the nodes (node id, inode, mode, uid, gid, flags), and the SHA-256 of all
// that. The next daemon may be a newer program or, after a step back, an older one:
// what another format says it asks the kernel.
const KnownSuffix = ".known"

const (
	knownFormat = 0x31_6e776f6e6b // "known1"; the digit grows with each change
	knownHeader = 3 * 8
	knownRecord = 2*8 + 4*4

	// Flags of a node.
	knownDir = 1 << 0
	knownAsk = 1 << 1
)

// A toldNode is a node that the kernel knew when the mount was handed over. ask
// says that it may have forgotten it, or that it may have cached attributes which
// are to be dropped.
type toldNode struct {
	node store.NodeID
	knownNode
	ask bool
}

// leaveKnown says what the kernel knows, when the mount is handed over and no
// change will reach it any more.
func (m *Mounted) leaveKnown() error {
	s := m.fs.shown
	if s.ledger == nil {
		return nil
	}
	b := encodeKnown(m.conn.Epoch(), m.conn.Generation(), s.toldNodes())
	if err := os.WriteFile(s.ledger.path+KnownSuffix, b, 0o600); err != nil {
		return fmt.Errorf("the next daemon will have to ask the kernel what it knows: %w", err)
	}
	return nil
}

// takeKnown is what the daemon before has said by leaveKnown; false if it did
// not, or not to this one.
func (m *Mounted) takeKnown() ([]toldNode, bool, error) {
	l := m.fs.shown.ledger
	if l == nil {
		return nil, false, nil
	}
	path := l.path + KnownSuffix
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		return nil, false, err
	}
	nodes, ok := decodeKnown(b, m.conn.Epoch(), m.conn.Generation()-1)
	if !ok {
		m.fs.log.Info("what a daemon left of the kernel's nodes is torn or of another time: the kernel is asked")
	}
	return nodes, ok, nil
}

// toldNodes are the nodes that the kernel knows. To be asked for are those of
// which it was still to be told, and those that the next daemon may show
// otherwise: of directories and drafts not all is recorded.
func (s *shown) toldNodes() []toldNode {
	s.mu.Lock()
	defer s.mu.Unlock()
	inos, nodes := s.queue.concerned()
	told := make([]toldNode, 0, len(s.nodes))
	for node, k := range s.nodes {
		_, old := s.frozen[node]
		told = append(told, toldNode{node, k, old || k.dir || inos[k.ino] || nodes[node] || s.vol.Drafted(node)})
	}
	return told
}

// adoptTold takes over what the kernel knows.
func (fs *FS) adoptTold(kernel prober, told []toldNode) error {
	fs.shown.expectNodes(len(told))
	for _, t := range told {
		if t.ask {
			if knows, err := kernel.KernelKnows(uint64(t.node)); err != nil {
				return err
			} else if !knows {
				continue
			}
		}
		fs.shown.adopt(t.node, t.knownNode, fs.vol)
	}
	return nil
}

// expectNodes makes room before anything is adopted.
func (s *shown) expectNodes(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes, s.current = make(map[store.NodeID]knownNode, n), make(map[crdt.Ino]store.NodeID, n)
}

func encodeKnown(epoch, generation uint64, told []toldNode) []byte {
	order := binary.LittleEndian
	b := make([]byte, 0, knownHeader+knownRecord*len(told)+sha256.Size)
	b = order.AppendUint64(order.AppendUint64(order.AppendUint64(b, knownFormat), epoch), generation)
	for _, t := range told {
		b = order.AppendUint64(order.AppendUint64(b, uint64(t.node)), uint64(t.ino))
		b = order.AppendUint32(order.AppendUint32(order.AppendUint32(b, t.mode), t.uid), t.gid)
		var flags uint32
		if t.dir {
			flags |= knownDir
		}
		if t.ask {
			flags |= knownAsk
		}
		b = order.AppendUint32(b, flags)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// decodeKnown returns false if b is not, whole, what the daemon of that number
// has written of the connection.
func decodeKnown(b []byte, epoch, generation uint64) ([]toldNode, bool) {
	order := binary.LittleEndian
	end := len(b) - sha256.Size
	if end < knownHeader || (end-knownHeader)%knownRecord != 0 || sha256.Sum256(b[:end]) != [sha256.Size]byte(b[end:]) {
		return nil, false
	}
	if order.Uint64(b) != knownFormat || order.Uint64(b[8:]) != epoch || order.Uint64(b[16:]) != generation {
		return nil, false
	}
	told := make([]toldNode, 0, end/knownRecord)
	for b = b[knownHeader:end]; len(b) >= knownRecord; b = b[knownRecord:] {
		flags := order.Uint32(b[28:])
		told = append(told, toldNode{store.NodeID(order.Uint64(b)), knownNode{
			ino: crdt.Ino(order.Uint64(b[8:])), mode: order.Uint32(b[16:]), uid: order.Uint32(b[20:]), gid: order.Uint32(b[24:]),
			dir: flags&knownDir != 0,
		}, flags&knownAsk != 0})
	}
	return told, true
}
