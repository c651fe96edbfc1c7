package box

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// pki is the cluster's authority, in a directory.
type pki struct {
	dir  string
	cert *x509.Certificate
	sign crypto.Signer
}

// identity names the files of a certificate and its key.
type identity struct{ cert, key string }

func newPKI(dir string) (*pki, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	p := &pki{dir: dir}
	_, err := p.make("ca", &x509.Certificate{
		Subject: pkix.Name{CommonName: "box"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return p, err
}

func (p *pki) ca() string { return filepath.Join(p.dir, "ca.crt") }

// issue makes a certificate for both ends of a connection.
func (p *pki) issue(name, group string, addresses ...string) (identity, error) {
	t := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if group != "" {
		t.Subject.Organization = []string{group}
	}
	for _, a := range addresses {
		t.IPAddresses = append(t.IPAddresses, net.ParseIP(a))
	}
	return p.make(name, t)
}

// make signs t; the first certificate is the authority's own.
func (p *pki) make(name string, t *x509.Certificate) (identity, error) {
	id := identity{cert: filepath.Join(p.dir, name+".crt")}
	var err error
	if id.key, err = p.key(name); err != nil {
		return id, err
	}
	text, err := os.ReadFile(id.key)
	if err != nil {
		return id, err
	}
	block, _ := pem.Decode(text)
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return id, err
	}
	if t.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		return id, err
	}
	t.NotBefore, t.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	parent, sign := p.cert, p.sign
	if parent == nil {
		parent, sign = t, key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), sign)
	if err != nil {
		return id, err
	}
	if p.cert == nil {
		if p.cert, err = x509.ParseCertificate(der); err != nil {
			return id, err
		}
		p.sign = key
	}
	return id, os.WriteFile(id.cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
}

// key makes a private key and returns its file.
func (p *pki) key(name string) (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return "", err
	}
	path := filepath.Join(p.dir, name+".key")
	return path, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

// kubeconfig writes NAME.kubeconfig, which has all it needs in it.
func (b *Box) kubeconfig(name, group string) (identity, error) {
	id, err := b.pki.issue(name, group)
	if err != nil {
		return id, err
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["box"] = &clientcmdapi.Cluster{Server: apiURL, CertificateAuthority: b.pki.ca()}
	config.AuthInfos["me"] = &clientcmdapi.AuthInfo{ClientCertificate: id.cert, ClientKey: id.key}
	config.Contexts["box"] = &clientcmdapi.Context{Cluster: "box", AuthInfo: "me"}
	config.CurrentContext = "box"
	if err := clientcmdapi.FlattenConfig(config); err != nil {
		return id, err
	}
	return id, clientcmd.WriteToFile(*config, filepath.Join(b.dir, name+".kubeconfig"))
}
