package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The archive is an image as others read it, with the program as its only file, and
// the same each time.
func TestImage(t *testing.T) {
	dir := t.TempDir()
	program, first, again := filepath.Join(dir, "program"), filepath.Join(dir, "1.tar"), filepath.Join(dir, "2.tar")
	must(t, os.WriteFile(program, []byte("a program"), 0o755))
	must(t, write(program, "arm64", "synapsefs:test", first))
	must(t, write(program, "arm64", "synapsefs:test", again))
	a, err := os.ReadFile(first)
	must(t, err)
	b, err := os.ReadFile(again)
	must(t, err)
	if !bytes.Equal(a, b) {
		t.Error("two archives of one program differ")
	}
	unpacked := filepath.Join(dir, "layout")
	unpack(t, a, unpacked)
	index, err := layout.ImageIndexFromPath(unpacked)
	must(t, err)
	must(t, validate.Index(index))
	manifest, err := index.IndexManifest()
	must(t, err)
	if len(manifest.Manifests) != 1 || manifest.Manifests[0].Platform.Architecture != "arm64" || !strings.HasSuffix(manifest.Manifests[0].Annotations["io.containerd.image.name"], "/library/synapsefs:test") {
		t.Errorf("%+v", manifest.Manifests)
	}
	image, err := index.Image(manifest.Manifests[0].Digest)
	must(t, err)
	file, err := image.ConfigFile()
	must(t, err)
	if len(file.Config.Entrypoint) != 1 || file.Config.Entrypoint[0] != "/usr/local/bin/synapsefs" {
		t.Errorf("entrypoint %v", file.Config.Entrypoint)
	}
	layers, err := image.Layers()
	must(t, err)
	content, err := layers[0].Uncompressed()
	must(t, err)
	files := map[string]string{}
	each(t, content, func(h *tar.Header, r io.Reader) {
		if h.Typeflag == tar.TypeReg {
			b, err := io.ReadAll(r)
			must(t, err)
			files[h.Name] = string(b)
		}
	})
	if len(layers) != 1 || len(files) != 1 || files[inImage] != "a program" {
		t.Errorf("%d layers, files %v", len(layers), files)
	}
}

const inImage = "usr/local/bin/synapsefs"

func each(t *testing.T, r io.Reader, fn func(*tar.Header, io.Reader)) {
	t.Helper()
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		must(t, err)
		fn(h, in)
	}
}

func unpack(t *testing.T, archive []byte, dir string) {
	t.Helper()
	each(t, bytes.NewReader(archive), func(h *tar.Header, r io.Reader) {
		path := filepath.Join(dir, h.Name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		b, err := io.ReadAll(r)
		must(t, err)
		must(t, os.WriteFile(path, b, 0o644))
	})
}

// The Dockerfile makes the same image, by the toolchain of go.mod.
func TestDockerfile(t *testing.T) {
	text, err := os.ReadFile("../Dockerfile")
	must(t, err)
	module, err := os.ReadFile("../../go.mod")
	must(t, err)
	_, rest, _ := strings.Cut(string(module), "\ngo ")
	version, _, _ := strings.Cut(rest, "\n")
	for _, want := range []string{
		" golang:" + version + " AS build",
		"-o /image/" + program + " ./cmd/synapsefs",
		"mkdir -m 1777 /image/tmp",
		"\nFROM scratch\n",
		`ENTRYPOINT ["/` + program + `"]`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the Dockerfile lacks %q", want)
		}
	}
}
