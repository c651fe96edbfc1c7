package main

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/wire"
)

// A slowDaemon answers Wait with an error of its own once the caller has gone.
type slowDaemon struct {
	wire.UnimplementedAdminServer
}

func (slowDaemon) Wait(ctx context.Context, _ *wire.WaitRequest) (*wire.WaitReply, error) {
	<-ctx.Done()
	return nil, status.FromContextError(ctx.Err()).Err()
}

func startSlowDaemon(t *testing.T) (socket string) {
	t.Helper()
	socket = filepath.Join(shortDir(t), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	wire.RegisterAdminServer(s, slowDaemon{})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return socket
}

// Out of time is one thing to a script, however gRPC comes to know of it.
func TestTimeout(t *testing.T) {
	socket := startSlowDaemon(t)
	for range 300 {
		code, _, stderr := synapsefs(t, "", "wait v --timeout 2ms --socket "+socket)
		if code != exitTimeout || stderr != "synapsefs: not done within --timeout 2ms: context deadline exceeded\n" {
			t.Fatalf("exit %d, %q", code, stderr)
		}
	}
}

func TestTimeoutByAnyCode(t *testing.T) {
	env := newEnv(t.Output(), t.Output())
	env.socket, env.timeout = startSlowDaemon(t), time.Millisecond
	for _, code := range []codes.Code{codes.Canceled, codes.DeadlineExceeded, codes.Internal, codes.Unavailable} {
		err := env.call(t.Context(), func(ctx context.Context, _ *admin.Client) error {
			<-ctx.Done()
			return status.Error(code, "stream terminated by RST_STREAM with error code: CANCEL")
		})
		if exitCode(err) != exitTimeout || !strings.HasPrefix(err.Error(), "not done within --timeout 1ms") {
			t.Errorf("%v: exit %d, %v", code, exitCode(err), err)
		}
	}
}

// An interrupt is none of it.
func TestInterrupt(t *testing.T) {
	env := newEnv(t.Output(), t.Output())
	env.socket, env.timeout = startSlowDaemon(t), time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	err := env.call(ctx, func(ctx context.Context, c *admin.Client) error {
		cancel()
		_, err := c.Wait(ctx, &wire.WaitRequest{})
		return err
	})
	if exitCode(err) != exitInterrupt {
		t.Errorf("exit %d, %v", exitCode(err), err)
	}
}
