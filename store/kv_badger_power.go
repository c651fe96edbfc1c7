package store

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"slices"
)

// After the machine went down, any page of a memtable's log that was not synced
// may be missing, in no order: one log may lack its end while a later one has
// its begin. What Badger would make of that is no moment of the past. But
// Badger numbers transactions without gaps, and each of ours sets keyOrder, so
// that no compaction drops the highest number. A log that does not go on where
// what is older ends is dropped, with all later ones. Older logs are synced
// first, so nothing that was synced is among them.

// keyOrder is set by every transaction: orderPlain, or orderAfterFailure if
// numbers before it may be missing since their transactions failed.
var keyOrder = []byte("O")

const (
	orderPlain byte = iota
	orderAfterFailure
)

// dropTornLogs removes the logs that do not continue the tables and each other.
// highest is the highest number in the tables.
func dropTornLogs(dir string, highest uint64) error {
	logs, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil {
		return err
	}
	slices.Sort(logs)
	torn := false
	for _, path := range logs {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		first, last, excused := logRange(b)
		if torn = torn || last == 0 || first > highest+1 && !excused; torn {
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		highest = max(highest, last)
	}
	if torn {
		return syncFile(dir)
	}
	return nil
}

// logRange returns the numbers of the first and last whole transaction in a
// log, 0 if there is none, and whether the first excuses a gap before it.
func logRange(b []byte) (first, last uint64, excused bool) {
	ordered := byte(0) // of the transaction that is being read
	for at := min(logHeader, len(b)); at < len(b); {
		r, ok := parseRecord(b[at:])
		if !ok {
			break
		}
		at += r.size
		switch key, number := r.key[:len(r.key)-8], math.MaxUint64-binary.BigEndian.Uint64(r.key[len(r.key)-8:]); {
		case string(key) == string(keyOrder) && len(r.value) == 1:
			ordered = r.value[0]
		case string(key) == txnEnd:
			if last = number; first == 0 {
				first, excused = number, ordered == orderAfterFailure
			}
		}
	}
	return first, last, excused
}

// txnEnd is the key of the record that ends a transaction in a log.
const txnEnd = "!badger!txn"

// A logRecord is one of a memtable's log: two bytes, the lengths of key and
// value and a time as varints, key (with the transaction's number, inverted,
// as its last 8 bytes), value, checksum.
type logRecord struct {
	key, value []byte
	size       int
}

// parseRecord reads the record that b begins with; false if there is none.
func parseRecord(b []byte) (r logRecord, ok bool) {
	n := 2
	var head [3]uint64
	for i := range head {
		if n >= len(b) {
			return r, false
		}
		u, size := binary.Uvarint(b[n:])
		if size <= 0 || i < 2 && u > uint64(len(b)) {
			return r, false
		}
		head[i] = u
		n += size
	}
	key, value := int(head[0]), int(head[1])
	end := n + key + value
	if key < 8 || end+4 > len(b) || crc32.Checksum(b[:end], castagnoli) != binary.BigEndian.Uint32(b[end:]) {
		return r, false
	}
	return logRecord{key: b[n : n+key], value: b[n+key : end], size: end + 4}, true
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
