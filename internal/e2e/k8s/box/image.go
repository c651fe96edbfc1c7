package box

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Busybox is an image with a shell and the usual programs. Its own is to wait.
const Busybox = "busybox:box"

// busybox is where Debian's busybox-static has it.
const busybox = "/bin/busybox"

// Images writes an archive of images, each with one static program of this machine
// as its entrypoint, and Busybox. The keys are the images' names.
func Images(archive string, programs map[string]string) error {
	all := map[name.Reference]v1.Image{}
	for tag, program := range programs {
		err := add(all, tag, program, []string{"/" + filepath.Base(program)}, nil)
		if err != nil {
			return err
		}
	}
	list, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("busybox: %w; scripts/setup k8s installs it", err)
	}
	if err := add(all, Busybox, busybox, []string{"/bin/sleep", "infinity"}, strings.Fields(string(list))); err != nil {
		return err
	}
	return tarball.MultiRefWriteToFile(archive, all)
}

// add adds an image with a program at the root, and links to it in /bin.
func add(all map[name.Reference]v1.Image, tag, program string, entrypoint, links []string) error {
	ref, err := name.ParseReference(tag)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	own := filepath.Base(program)
	err = errors.Join(
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "bin/", Mode: 0o755}),
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}),
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: own, Mode: 0o755, Size: int64(len(content))}),
	)
	if err != nil {
		return err
	}
	if _, err := w.Write(content); err != nil {
		return err
	}
	for _, l := range links {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: path.Join("bin", l), Linkname: "/" + own}); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	packed, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		return err
	}
	image, err := mutate.AppendLayers(empty.Image, packed)
	if err != nil {
		return err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Config = v1.Config{Entrypoint: entrypoint, Env: []string{"PATH=/bin"}}
	if image, err = mutate.ConfigFile(image, file); err != nil {
		return err
	}
	all[ref] = image
	return nil
}
