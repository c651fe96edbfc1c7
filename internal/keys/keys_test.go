package keys

import (
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// newNode issues keys of a node in a new directory.
func newNode(t *testing.T, ca, node string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), node)
	if err := Issue(ca, out, node); err != nil {
		t.Fatal(err)
	}
	return out
}

func newCA(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if err := InitCA(dir, "prod"); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestIssueAndLoad(t *testing.T) {
	ca := newCA(t)
	dir := newNode(t, ca, "node1")
	k, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if k.Node != "node1" || k.Cluster != "prod" || len(k.ClusterID) != 32 || len(k.Gossip) != 1 {
		t.Errorf("loaded %+v", k)
	}
	leaf, err := VerifyNode(k.CA, k.Cert.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if !ed25519.Verify(leaf.PublicKey.(ed25519.PublicKey), []byte("x"), k.Sign([]byte("x"))) {
		t.Error("signature does not verify")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		i, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if i.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", e.Name(), i.Mode())
		}
		if e.Name() == fileCAKey {
			t.Error("the CA's key left its directory")
		}
	}
}

func TestIssueAgainKeepsKey(t *testing.T) {
	ca := newCA(t)
	dir := newNode(t, ca, "node1")
	before, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := Issue(ca, dir, "node1"); err != nil {
		t.Fatal(err)
	}
	after, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !before.Cert.PrivateKey.(ed25519.PrivateKey).Equal(after.Cert.PrivateKey) {
		t.Error("node got another key")
	}
	if err := Issue(ca, dir, "node2"); !errors.Is(err, ErrExists) {
		t.Errorf("issue of another node into its directory: %v", err)
	}
	if err := InitCA(ca, "prod"); !errors.Is(err, ErrExists) {
		t.Errorf("InitCA over a CA: %v", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	tests := []struct {
		name  string
		spoil func(dir string) error
	}{
		{"CA of another cluster", func(dir string) error { return copyFile(other, dir, fileCACert) }},
		{"key of another node", func(dir string) error { return copyFile(newNode(t, ca, "node2"), dir, fileKey) }},
		{"node certificate for CA", func(dir string) error {
			return os.Rename(filepath.Join(dir, fileCert), filepath.Join(dir, fileCACert))
		}},
		{"short gossip key", func(dir string) error { return os.WriteFile(filepath.Join(dir, fileGossip), []byte("QUJD\n"), 0o600) }},
		{"no gossip key", func(dir string) error { return os.WriteFile(filepath.Join(dir, fileGossip), nil, 0o600) }},
		{"no PEM", func(dir string) error { return os.WriteFile(filepath.Join(dir, fileKey), []byte("x"), 0o600) }},
		{"no node key", func(dir string) error { return os.Remove(filepath.Join(dir, fileKey)) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := newNode(t, ca, "node1")
			if err := test.spoil(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := Load(dir); err == nil {
				t.Error("loaded")
			}
		})
	}
}

func copyFile(from, to, name string) error {
	b, err := os.ReadFile(filepath.Join(from, name))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(to, name), b, 0o600)
}

func TestCheckNode(t *testing.T) {
	for _, good := range []string{"a", "node1", "pod-0.synapsefs.default.svc", "0"} {
		if err := CheckNode(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "A", "-a", "a-", "a..b", "a_b", "a/b", ".", "a."} {
		if CheckNode(bad) == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
