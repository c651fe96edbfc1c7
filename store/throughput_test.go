package store

import (
	"crypto/ed25519"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// still is a Scheduler that does nothing: batches are as large as they may be.
type still struct{}

func (still) Loop(func() time.Duration) (wake, stop func()) { return func() {}, func() {} }
func (still) After(time.Duration, func()) Timer             { return still{} }
func (still) Stop() bool                                    { return true }

// BenchmarkMergeThroughput merges what a peer that was away for long has
// written, verifying it as gossip does, into a state in memory (the merge rules
// alone) and into a volume on Badger.
func BenchmarkMergeThroughput(b *testing.B) {
	for _, kind := range []string{"small files", "rewrites", "attributes", "names"} {
		b.Run(kind+"/memory", func(b *testing.B) {
			s := crdt.NewMapState()
			mergeThroughput(b, kind, func(*Volume) func(*Batch) error {
				return func(x *Batch) error { return applyAll(s, x) }
			})
		})
		b.Run(kind+"/badger", func(b *testing.B) {
			mergeThroughput(b, kind, func(v *Volume) func(*Batch) error { return v.Merge })
		})
	}
}

func applyAll(s crdt.State, x *Batch) error {
	ops, err := x.decodeOps()
	if err != nil {
		return err
	}
	for _, op := range ops {
		if _, err := crdt.Apply(s, op); err != nil {
			return err
		}
	}
	return nil
}

func mergeThroughput(b *testing.B, kind string, into func(*Volume) func(*Batch) error) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		b.Fatal(err)
	}
	id := NewVolumeID()
	sign := func(d []byte) []byte { return ed25519.Sign(private, d) }
	from := volumeWith(b, id, Options{Scheduler: still{}, Sign: sign, Memory: NewMemory()})
	merge := into(volumeWith(b, id, Options{Scheduler: still{}, Sign: sign}))
	work(b, from, kind)
	if err := from.sealNow(); err != nil {
		b.Fatal(err)
	}
	var raw [][]byte
	ops := 0
	for since, more := (crdt.Vector{}), true; more; {
		var bs []*Batch
		if bs, more, err = from.Batches(since, 1<<20); err != nil {
			b.Fatal(err)
		}
		for _, x := range bs {
			raw = append(raw, x.Encode())
			ops += len(x.Ops)
			since[x.Origin] = crdt.VectorEntry{Seq: x.Last}
		}
	}
	b.ResetTimer()
	begun := cpuTime()
	for _, r := range raw {
		x, err := DecodeBatch(r)
		if err != nil {
			b.Fatal(err)
		}
		if d := x.Digest(); !ed25519.Verify(public, d[:], x.Signature) {
			b.Fatal("signature")
		}
		if err := merge(x); err != nil {
			b.Fatal(err)
		}
	}
	took := cpuTime() - begun
	b.ReportMetric(float64(ops)/took.Seconds(), "ops/cpu-s")
	b.ReportMetric(float64(ops)/float64(len(raw)), "ops/batch")
	b.ReportMetric(0, "ns/op")
}

// cpuTime is what the process has used.
func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// work makes b.N ops.
func work(b *testing.B, v *Volume, kind string) {
	dirs := make([]NodeID, 100)
	for n := range dirs {
		a, err := v.Mknod(Request{}, root, fmt.Sprintf("d%d", n), NewNode{Kind: crdt.KindDir, Mode: 0o755})
		if err != nil {
			b.Fatal(err)
		}
		dirs[n] = a.Node
	}
	file := func(n int) NodeID {
		write(b, v, dirs[n%100], fmt.Sprintf("f%07d", n), "<api name='x'/>")
		a, _, err := v.Lookup(dirs[n%100], fmt.Sprintf("f%07d", n))
		if err != nil {
			b.Fatal(err)
		}
		return a.Node
	}
	var files []NodeID
	if kind == "attributes" || kind == "names" {
		for n := range 1000 {
			files = append(files, file(n))
		}
	}
	for n := range b.N {
		switch kind {
		case "small files":
			file(n)
		case "rewrites":
			write(b, v, dirs[n%100], fmt.Sprintf("f%d", n%1000/100), noise(uint64(n), 1000))
		case "attributes":
			mode := uint32(0o600 + n/1000%2*0o44)
			if _, err := v.SetAttr(Request{}, files[n%1000], SetAttr{Mode: &mode}); err != nil {
				b.Fatal(err)
			}
		case "names":
			at, to := n%1000, (n/1000+1)%2
			from := fmt.Sprintf("f%07d", at)
			if n/1000 > 0 {
				from = fmt.Sprintf("g%d-%07d", 1-to, at)
			}
			if err := v.Rename(Request{}, dirs[at%100], from, dirs[at%100], fmt.Sprintf("g%d-%07d", to, at), crdt.RenameReplace); err != nil {
				b.Fatal(err)
			}
		}
	}
}
