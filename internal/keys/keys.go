// Package keys makes and loads the keys of a cluster: a small certificate
// authority, one certificate a node, and the key of the membership gossip.
//
// A directory of keys holds these files, readable by their owner only:
//
//	ca.crt      certificate of the CA (PEM). Its subject is the cluster:
//	            O=synapsefs, OU=name, CN=cluster id (random, hex)
//	ca.key      its ed25519 key (PEM, PKCS #8); only where nodes are issued
//	node.crt    the node's certificate; CN and DNS name are the node's name
//	node.key    its ed25519 key, which also signs what the node writes
//	gossip.key  32-byte keys of the membership gossip, base64, one a line: the
//	            first encrypts, all decrypt. To rotate, add the new key to the
//	            end on every node, then move it to the front, then drop the old.
package keys

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Names of the files in a directory of keys.
const (
	fileCACert   = "ca.crt"
	fileCAKey    = "ca.key"
	fileCert     = "node.crt"
	fileKey      = "node.key"
	fileGossip   = "gossip.key"
	organisation = "synapsefs"
)

// GossipKeySize is the length of a key of the membership gossip: AES-256.
const GossipKeySize = 32

// maxGossipKeys bounds the keyring.
const maxGossipKeys = 8

var (
	// ErrExists says that keys would be overwritten.
	ErrExists = errors.New("keys exist already")
	// ErrInvalid says that keys do not belong together or are none.
	ErrInvalid = errors.New("invalid keys")
)

// Keys are what one node needs to be a member of its cluster. They are not
// changed after Load.
type Keys struct {
	Node      string // the name the certificate is for
	Cluster   string // name of the cluster, for people
	ClusterID string // random, hex

	CA     *x509.CertPool // the cluster's CA alone
	Cert   tls.Certificate
	Gossip [][]byte // GossipKeySize each; the first encrypts
}

// Sign signs with the node's key.
func (k *Keys) Sign(message []byte) []byte {
	return ed25519.Sign(k.Cert.PrivateKey.(ed25519.PrivateKey), message)
}

// Load reads a node's keys and checks that they belong together.
func Load(dir string) (*Keys, error) {
	k, err := load(dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w (make them with \"synapsefs keys\")", err)
	}
	if err != nil {
		return nil, fmt.Errorf("load keys from %s: %w", dir, err)
	}
	return k, nil
}

func load(dir string) (*Keys, error) {
	ca, err := readCert(filepath.Join(dir, fileCACert))
	if err != nil {
		return nil, err
	}
	cert, err := readCert(filepath.Join(dir, fileCert))
	if err != nil {
		return nil, err
	}
	key, err := readKey(filepath.Join(dir, fileKey))
	if err != nil {
		return nil, err
	}
	gossip, err := readGossipKeys(filepath.Join(dir, fileGossip))
	if err != nil {
		return nil, err
	}
	id, name, err := clusterOf(ca)
	if err != nil {
		return nil, err
	}
	k := &Keys{
		Node: cert.Subject.CommonName, Cluster: name, ClusterID: id,
		CA:     x509.NewCertPool(),
		Cert:   tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert},
		Gossip: gossip,
	}
	k.CA.AddCert(ca)
	return k, k.check(cert, key)
}

func (k *Keys) check(cert *x509.Certificate, key ed25519.PrivateKey) error {
	public, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok || !public.Equal(key.Public()) {
		return fmt.Errorf("%w: %s is not the key of %s", ErrInvalid, fileKey, fileCert)
	}
	if _, err := VerifyNode(k.CA, [][]byte{cert.Raw}); err != nil {
		return fmt.Errorf("%s: %w", fileCert, err)
	}
	return nil
}

// VerifyNode checks that a certificate chain (DER, the node's first) was issued
// by the cluster's CA for a node and returns the node's certificate. When it
// expires is left aside: connections check that, but what a node signed while
// it was valid stays true.
func VerifyNode(ca *x509.CertPool, chain [][]byte) (*x509.Certificate, error) {
	if len(chain) == 0 || len(chain) > 4 {
		return nil, fmt.Errorf("%w: chain of %d certificates", ErrInvalid, len(chain))
	}
	var certs []*x509.Certificate
	between := x509.NewCertPool()
	for n, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		certs = append(certs, c)
		if n > 0 {
			between.AddCert(c)
		}
	}
	leaf := certs[0]
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: ca, Intermediates: between, CurrentTime: leaf.NotBefore,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if _, ok := leaf.PublicKey.(ed25519.PublicKey); !ok {
		return nil, fmt.Errorf("%w: certificate of %q has no ed25519 key", ErrInvalid, leaf.Subject.CommonName)
	}
	return leaf, CheckCertName(leaf, leaf.Subject.CommonName)
}

// CheckCertName checks that a certificate is for the node of that name.
func CheckCertName(cert *x509.Certificate, node string) error {
	if err := CheckNode(node); err != nil {
		return err
	}
	if cert.Subject.CommonName != node || len(cert.DNSNames) != 1 || cert.DNSNames[0] != node {
		return fmt.Errorf("%w: certificate is for node %q, not %q", ErrInvalid, cert.Subject.CommonName, node)
	}
	return nil
}

// CheckNode checks that a node's name is one or more DNS labels.
func CheckNode(name string) error {
	bad := len(name) == 0 || len(name) > 64 // the limit of a certificate's CN
	for label := range strings.SplitSeq(name, ".") {
		bad = bad || !isLabel(label)
	}
	if bad {
		return fmt.Errorf("node name %q: want DNS labels of a-z, 0-9 and -, at most 64 characters", name)
	}
	return nil
}

func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// clusterOf reads the cluster's id and name from its CA's certificate.
func clusterOf(ca *x509.Certificate) (id, name string, err error) {
	s := ca.Subject
	if !ca.IsCA || len(s.Organization) != 1 || s.Organization[0] != organisation || s.CommonName == "" {
		return "", "", fmt.Errorf("%w: %s is no CA of a synapsefs cluster", ErrInvalid, fileCACert)
	}
	if len(s.OrganizationalUnit) > 0 {
		name = s.OrganizationalUnit[0]
	}
	return s.CommonName, name, nil
}

func readGossipKeys(path string) ([][]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for n, line := range strings.Fields(string(b)) {
		key, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(key) != GossipKeySize {
			return nil, fmt.Errorf("%w: %s: key %d is not %d bytes in base64", ErrInvalid, fileGossip, n+1, GossipKeySize)
		}
		out = append(out, key)
	}
	if len(out) == 0 || len(out) > maxGossipKeys {
		return nil, fmt.Errorf("%w: %s: %d keys, want 1 to %d", ErrInvalid, fileGossip, len(out), maxGossipKeys)
	}
	return out, nil
}
