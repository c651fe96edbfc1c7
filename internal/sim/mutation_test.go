package sim

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/synapsefs/synapsefs/internal/mutation"
)

// TestMutations switches off one rule at a time: within 2,000 seeds something
// must fail.
func TestMutations(t *testing.T) {
	if mutation.Off(mutation.Rule(os.Getenv("SYNAPSEFS_MUTATION"))) {
		t.Skip("in a mutation")
	}
	if testing.Short() {
		t.Skip("builds the package once more")
	}
	binary := filepath.Join(t.TempDir(), "sim.test")
	if out, err := exec.Command("go", "test", "-c", "-tags", "mutation", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, rule := range mutation.Rules {
		t.Run(string(rule), func(t *testing.T) {
			cmd := exec.Command(binary, "-test.run=^TestP4Seeds$", "-sim.seeds=2000", "-sim.minimise=0")
			cmd.Env = append(os.Environ(), "SYNAPSEFS_MUTATION="+string(rule))
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("2,000 seeds did not notice: %s", out)
			}
			found := regexp.MustCompile(`(?m)^.*seed \d+.*$`).Find(out)
			if found == nil {
				t.Fatalf("it fails otherwise: %s", out)
			}
			t.Logf("%.200s", found)
		})
	}
}
