package keys

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// How long certificates are valid. They begin a day early, for clocks that run
// behind.
const (
	caYears   = 30
	nodeYears = 10
	backdate  = 24 * time.Hour
)

const (
	pemCert = "CERTIFICATE"
	pemKey  = "PRIVATE KEY"
)

// InitCA makes the CA and the gossip key of a new cluster in dir, which is
// made if it is missing. An existing CA is ErrExists.
func InitCA(dir, cluster string) error {
	if err := initCA(dir, cluster); err != nil {
		return fmt.Errorf("make keys of cluster %q in %s: %w", cluster, dir, err)
	}
	return nil
}

func initCA(dir, cluster string) error {
	for _, name := range []string{fileCACert, fileCAKey, fileGossip} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("%s: %w", name, ErrExists)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	subject := pkix.Name{Organization: []string{organisation}, CommonName: hex.EncodeToString(random(16))}
	if cluster != "" {
		subject.OrganizationalUnit = []string{cluster}
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: subject,
		NotBefore: now.Add(-backdate), NotAfter: now.AddDate(caYears, 0, 0),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		IsCA:     true, BasicConstraintsValid: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	gossip := base64.StdEncoding.EncodeToString(random(GossipKeySize)) + "\n"
	return errors.Join(
		writeKey(filepath.Join(dir, fileCAKey), private),
		writePEM(filepath.Join(dir, fileCACert), pemCert, der),
		write(filepath.Join(dir, fileGossip), []byte(gossip)),
	)
}

// Issue makes the keys of a node in out from the CA in dir; out may be dir. A
// node that has a key in out keeps it: its replicas are known by it.
func Issue(dir, out, node string) error {
	if err := issue(dir, out, node); err != nil {
		return fmt.Errorf("issue keys of node %q: %w", node, err)
	}
	return nil
}

func issue(dir, out, node string) error {
	if err := CheckNode(node); err != nil {
		return err
	}
	ca, err := readCert(filepath.Join(dir, fileCACert))
	if err != nil {
		return err
	}
	caKey, err := readKey(filepath.Join(dir, fileCAKey))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o700); err != nil {
		return err
	}
	key, err := nodeKey(out, node)
	if err != nil {
		return err
	}
	der, err := nodeCert(ca, caKey, key, node)
	if err != nil {
		return err
	}
	if err := writePEM(filepath.Join(out, fileCert), pemCert, der); err != nil || out == dir {
		return err
	}
	for _, name := range []string{fileCACert, fileGossip} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if err := write(filepath.Join(out, name), b); err != nil {
			return err
		}
	}
	return nil
}

// nodeKey returns the key that the node has in out, or makes one.
func nodeKey(out, node string) (ed25519.PrivateKey, error) {
	path := filepath.Join(out, fileKey)
	if cert, err := readCert(filepath.Join(out, fileCert)); err == nil && cert.Subject.CommonName != node {
		return nil, fmt.Errorf("%s holds the keys of node %q: %w", out, cert.Subject.CommonName, ErrExists)
	}
	key, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	_, key, err = ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return key, writeKey(path, key)
}

func nodeCert(ca *x509.Certificate, caKey, key ed25519.PrivateKey, node string) ([]byte, error) {
	now := time.Now()
	from, to := now.Add(-backdate), now.AddDate(nodeYears, 0, 0)
	if from.Before(ca.NotBefore) {
		from = ca.NotBefore
	}
	if to.After(ca.NotAfter) {
		to = ca.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{Organization: []string{organisation}, CommonName: node},
		DNSNames:     []string{node},
		NotBefore:    from, NotAfter: to,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	return x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
}

func serial() *big.Int { return new(big.Int).SetBytes(random(16)) }

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails: crypto/rand aborts the process instead
	return b
}

func readCert(path string) (*x509.Certificate, error) {
	der, err := readPEM(path, pemCert)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, filepath.Base(path), err)
	}
	return c, nil
}

func readKey(path string) (ed25519.PrivateKey, error) {
	der, err := readPEM(path, pemKey)
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, filepath.Base(path), err)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%w: %s: not an ed25519 key", ErrInvalid, filepath.Base(path))
	}
	return key, nil
}

func readPEM(path, kind string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("%w: %s: no PEM block %q", ErrInvalid, filepath.Base(path), kind)
	}
	return block.Bytes, nil
}

func writeKey(path string, key ed25519.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(path, pemKey, der)
}

func writePEM(path, kind string, der []byte) error {
	return write(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// write replaces a file whole.
func write(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // once renamed there is none
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
