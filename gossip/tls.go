package gossip

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/synapsefs/synapsefs/internal/keys"
)

// errNoName says that a connection has no node's certificate.
var errNoName = errors.New("connection without a node's certificate")

// serverTLS accepts nodes of the cluster.
func serverTLS(k *keys.Keys) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{k.Cert},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              k.CA,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2"},
		VerifyConnection: func(s tls.ConnectionState) error {
			return keys.CheckCertName(s.PeerCertificates[0], s.PeerCertificates[0].Subject.CommonName)
		},
	}
}

// clientTLS connects to one node of the cluster and no other.
func clientTLS(k *keys.Keys, node string) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{k.Cert},
		RootCAs:      k.CA,
		ServerName:   node,
		NextProtos:   []string{"h2"},
		VerifyConnection: func(s tls.ConnectionState) error {
			return keys.CheckCertName(s.PeerCertificates[0], node)
		},
	}
}

// callerOf returns the name of the node that made a call.
func callerOf(ctx context.Context) (string, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", errNoName
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return "", errNoName
	}
	cert := info.State.PeerCertificates[0]
	if err := keys.CheckCertName(cert, cert.Subject.CommonName); err != nil {
		return "", fmt.Errorf("%w: %w", errNoName, err)
	}
	return cert.Subject.CommonName, nil
}
