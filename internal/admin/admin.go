// Package admin is the client's side of a daemon's admin API: the socket, the
// connection, and what the errors that come back mean.
package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/synapsefs/synapsefs/internal/wire"
)

// Errors that Dial may return.
var (
	ErrNotRunning = errors.New("the daemon is not running")
	ErrNoAccess   = errors.New("the daemon's socket is not yours")
)

// A Client speaks to one daemon.
type Client struct {
	wire.AdminClient
	conn *grpc.ClientConn
}

// Dial connects to the daemon at a unix socket.
func Dial(socket string) (*Client, error) {
	if err := Probe(socket); err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///synapsefs",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}),
		// The socket's mode is the authentication.
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", socket, err)
	}
	return &Client{AdminClient: wire.NewAdminClient(conn), conn: conn}, nil
}

// Probe returns nil if somebody listens at the socket.
func Probe(socket string) error {
	conn, err := net.DialTimeout("unix", socket, 5*time.Second)
	switch {
	case err == nil:
		return conn.Close()
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("admin socket %s: %w", socket, ErrNotRunning)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("admin socket %s: %w", socket, ErrNoAccess)
	}
	return fmt.Errorf("admin socket %s: %w", socket, err)
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// An Error is what the daemon answered.
type Error struct {
	Code codes.Code
	Text string
}

func (e *Error) Error() string { return e.Text }

// Explain turns the error of a call into one for people. A daemon that went
// away meanwhile is ErrNotRunning.
func Explain(err error) error {
	s, ok := status.FromError(err)
	switch {
	case err == nil || !ok:
		return err
	case s.Code() == codes.Unavailable:
		return fmt.Errorf("%w (it stopped during the call: %s)", ErrNotRunning, s.Message())
	case s.Code() == codes.Canceled:
		return context.Canceled
	}
	return &Error{Code: s.Code(), Text: s.Message()}
}
