package store

import (
	"log/slog"
	"strings"
	"testing"
)

// A log in JSON has a volume's id as all else prints it.
func TestVolumeIDLogged(t *testing.T) {
	var text strings.Builder
	slog.New(slog.NewJSONHandler(&text, nil)).Info("", "id", CatalogueID)
	if !strings.Contains(text.String(), `"id":"`+CatalogueID.String()+`"`) {
		t.Error(text.String())
	}
}
