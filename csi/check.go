package csi

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/synapsefs/synapsefs/internal/node"
)

type accessMode = spec.VolumeCapability_AccessMode_Mode

const (
	singleNodeWriter       = spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	singleNodeReader       = spec.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
	singleNodeSingleWriter = spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	singleNodeMultiWriter  = spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	multiNodeReader        = spec.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	multiNodeSingleWriter  = spec.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER
	multiNodeMultiWriter   = spec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
)

// modes are those supported.
var modes = []accessMode{
	singleNodeWriter, singleNodeReader, singleNodeSingleWriter, singleNodeMultiWriter,
	multiNodeReader, multiNodeSingleWriter, multiNodeMultiWriter,
}

func readsOnly(m accessMode) bool { return m == singleNodeReader || m == multiNodeReader }

func onOneNode(m accessMode) bool {
	return m == singleNodeWriter || m == singleNodeReader || m == singleNodeSingleWriter || m == singleNodeMultiWriter
}

// An access is what a capability asks for.
type access struct {
	mode  accessMode
	flags node.MountFlags
	// readOnly is a flag of the mount; readsOnly(mode) says the same.
	readOnly bool
	group    *uint32
}

// fileSystems are the types that may be asked for.
var fileSystems = []string{"", "synapsefs", "fuse.synapsefs"}

// accessOf reads a capability, or says why it cannot be had.
func accessOf(c *spec.VolumeCapability) (a access, err error) {
	m := c.GetMount()
	a.mode = c.GetAccessMode().GetMode()
	switch {
	case c == nil:
		return a, invalid("no volume_capability is given")
	case c.GetBlock() != nil:
		return a, invalid("raw block volumes are not supported: volumeMode must be Filesystem")
	case m == nil:
		return a, invalid("the volume_capability has no access type")
	case !slices.Contains(modes, a.mode):
		return a, invalid("access mode %v is not supported", a.mode)
	case !slices.Contains(fileSystems, m.GetFsType()):
		return a, invalid("fsType %q is not supported: leave it out", m.GetFsType())
	}
	for _, words := range m.GetMountFlags() {
		for word := range strings.SplitSeq(words, ",") {
			set := mountWords[word]
			if set == nil {
				return a, invalid("mount option %q is not supported: there are %s", word, strings.Join(slices.Sorted(maps.Keys(mountWords)), ", "))
			}
			set(&a)
		}
	}
	if g := m.GetVolumeMountGroup(); g != "" {
		gid, err := strconv.ParseUint(g, 10, 32)
		if err != nil || gid == math.MaxUint32 { // (gid_t)-1 is no group
			return a, invalid("volume_mount_group %q is no group id", g)
		}
		a.group = new(uint32)
		*a.group = uint32(gid)
	}
	return a, nil
}

// mountWords are the mount options of a PersistentVolume or StorageClass.
var mountWords = map[string]func(*access){
	"ro": func(a *access) { a.readOnly = true }, "rw": func(a *access) { a.readOnly = false },
	"suid": func(a *access) { a.flags.Suid = true }, "nosuid": func(a *access) { a.flags.Suid = false },
	"dev": func(a *access) { a.flags.Dev = true }, "nodev": func(a *access) { a.flags.Dev = false },
	"exec": func(a *access) { a.flags.NoExec = false }, "noexec": func(a *access) { a.flags.NoExec = true },
	"atime": func(a *access) { a.flags.NoAtime = false }, "noatime": func(a *access) { a.flags.NoAtime = true },
	"diratime": func(a *access) { a.flags.NoDirAtime = false }, "nodiratime": func(a *access) { a.flags.NoDirAtime = true },
	"symfollow": func(a *access) { a.flags.NoSymFollow = false }, "nosymfollow": func(a *access) { a.flags.NoSymFollow = true },
	"relatime": func(*access) {},
}

// checkAll finds a capability that cannot be had.
func checkAll(capabilities []*spec.VolumeCapability) error {
	if len(capabilities) == 0 {
		return invalid("no volume_capabilities are given")
	}
	for _, c := range capabilities {
		if _, err := accessOf(c); err != nil {
			return err
		}
	}
	return nil
}

func checkPath(name, path string) error {
	switch {
	case path == "":
		return invalid("no %s is given", name)
	case !filepath.IsAbs(path):
		return invalid("%s %q is not an absolute path", name, path)
	}
	return nil
}

// parameters are what a StorageClass may say; all of them can be changed later.
var parameters = []string{"conflict-limit", "history", "history-age", "namespaces", "replicas"}

// fromKubernetes begins the parameters that a provisioner adds.
const fromKubernetes = "csi.storage.k8s.io/"

// defaultReplicas is how many nodes hold a volume whose class does not say.
const defaultReplicas = "3"

// optionsOf makes options of parameters; later ones win. The values are checked by
// who takes the options.
func optionsOf(all ...map[string]string) (map[string]string, error) {
	options := map[string]string{}
	for _, given := range all {
		for _, key := range slices.Sorted(maps.Keys(given)) {
			if strings.HasPrefix(key, fromKubernetes) {
				continue
			}
			if !slices.Contains(parameters, key) {
				return nil, invalid("no parameter %q: there are %s", key, strings.Join(parameters, ", "))
			}
			options[key] = given[key]
		}
	}
	if _, err := node.ParseOptions(options); err != nil {
		return nil, err
	}
	return options, nil
}

// capacityOf is the size that is asked for, or 0, given the present one.
func capacityOf(r *spec.CapacityRange, present int64) (int64, error) {
	required, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	size := max(required, present)
	switch {
	case required < 0 || limit < 0:
		return 0, invalid("capacity_range is negative")
	case limit > 0 && size > limit:
		return 0, status.Errorf(codes.OutOfRange, "limit_bytes %d is less than %d", limit, size)
	}
	return size, nil
}

// maxLabel is the longest name of a volume.
const maxLabel = 63

// volumeName is the name of the volume that an orchestrator calls so: that very
// name, if a volume can have it.
func volumeName(called string) string {
	if isLabel(called) {
		return called
	}
	sum := sha256.Sum256([]byte(called))
	return "csi-" + hex.EncodeToString(sum[:16])
}

func isLabel(name string) bool {
	return len(name) > 0 && len(name) <= maxLabel && name[0] != '-' && name[len(name)-1] != '-' &&
		!strings.ContainsFunc(name, func(r rune) bool {
			return r != '-' && (r < 'a' || r > 'z') && (r < '0' || r > '9')
		})
}
