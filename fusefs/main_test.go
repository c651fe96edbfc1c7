package fusefs_test

import (
	"testing"

	"github.com/synapsefs/synapsefs/internal/fstest"
)

func TestMain(m *testing.M) { fstest.Main(m) }
