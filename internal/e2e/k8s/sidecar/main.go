// Command sidecar stands in for the two sidecars of the Kubernetes project that are
// not published as Go modules. It is what it is called, and takes the flags that
// our chart gives: csi-node-driver-registrar tells kubelet of the driver,
// livenessprobe answers /healthz with the driver's Probe.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func main() {
	name := filepath.Base(os.Args[0])
	driver := flag.String("csi-address", "/csi/csi.sock", "the driver's socket")
	kubelets := flag.String("kubelet-registration-path", "", "the same as kubelet has it")
	port := flag.String("health-port", "9808", "where to answer /healthz")
	timeout := flag.Duration("probe-timeout", time.Second, "of the driver's answer")
	flag.Parse()
	conn, err := grpc.NewClient("unix://"+*driver, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err == nil {
		identity := csi.NewIdentityClient(conn)
		switch name {
		case "csi-node-driver-registrar":
			err = register(identity, *kubelets)
		case "livenessprobe":
			err = probe(identity, ":"+*port, *timeout)
		default:
			err = errors.New("called by a name that it does not know")
		}
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	os.Exit(1)
}

// register waits for the driver and serves its name to kubelet, which watches the
// directory, until kubelet refuses it.
func register(driver csi.IdentityClient, endpoint string) error {
	info, err := driver.GetPluginInfo(context.Background(), &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("ask the driver's name: %w", err)
	}
	socket := filepath.Join("/registration", info.Name+"-reg.sock")
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	s := &server{info: &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: info.Name, Endpoint: endpoint, SupportedVersions: []string{"1.0.0"},
	}, refused: make(chan error, 1)}
	g := grpc.NewServer()
	registration.RegisterRegistrationServer(g, s)
	go func() { s.refused <- g.Serve(l) }()
	return <-s.refused
}

type server struct {
	registration.UnimplementedRegistrationServer
	info    *registration.PluginInfo
	refused chan error
}

func (s *server) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return s.info, nil
}

func (s *server) NotifyRegistrationStatus(_ context.Context, st *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !st.PluginRegistered {
		s.refused <- fmt.Errorf("kubelet refused the driver: %s", st.Error)
	}
	return &registration.RegistrationStatusResponse{}, nil
}

func probe(driver csi.IdentityClient, address string, timeout time.Duration) error {
	http.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		p, err := driver.Probe(ctx, &csi.ProbeRequest{})
		switch {
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		case p.Ready != nil && !p.Ready.Value:
			http.Error(w, "not ready", http.StatusInternalServerError)
		default:
			fmt.Fprintln(w, "ok")
		}
	})
	return http.ListenAndServe(address, nil)
}
