package csi_test

import (
	"path/filepath"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
)

// notAdvertised is what the suite may skip, as it says it: the driver does not say
// that it can.
var notAdvertised = map[string]bool{
	"SNAPSHOT_ACCESSIBILITY_CONSTRAINTS not supported": true,
	"ControllerGetVolumeHealth not supported":          true,
	"ControllerListVolumeHealth not supported":         true,
	"GroupControllerService not supported":             true,
	"NodeGetStorageHealth not supported":               true,
	"testnodevolumeattachlimit not enabled":            true, // there is no limit
}

// The suite of the Kubernetes project, against the driver with real mounts. What
// it skips is not advertised.
func TestSanity(t *testing.T) {
	d := serve(t)
	c := sanity.NewTestConfig()
	c.Address = "unix://" + d.socket
	c.TargetPath, c.StagingPath = filepath.Join(d.dir, "target"), filepath.Join(d.dir, "globalmount")
	c.TestVolumeMutableParameters = map[string]string{"history": "3", "replicas": "2"}
	passed := 0
	ginkgo.ReportAfterSuite("nothing is skipped that is advertised", func(r ginkgo.Report) {
		for _, s := range r.SpecReports {
			switch {
			case s.State == types.SpecStatePassed:
				passed++
			case s.State == types.SpecStateSkipped && !notAdvertised[s.Failure.Message]:
				t.Errorf("skipped: %s: %s", s.FullText(), s.Failure.Message)
			}
		}
	})
	sanity.Test(t, c)
	t.Logf("%d passed", passed)
}
