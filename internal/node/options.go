package node

import (
	"fmt"
	"strconv"
	"time"

	"github.com/synapsefs/synapsefs/internal/config"
	"github.com/synapsefs/synapsefs/store"
)

// limitsOf reads the options of a volume: what its replicas keep of what was.
func limitsOf(options map[string]string) (l store.Limits, err error) {
	for key, value := range options {
		switch key {
		case "history":
			l.History, err = strconv.Atoi(value)
		case "history-age":
			l.HistoryAge, err = time.ParseDuration(value)
		case "conflict-limit":
			var size config.Size
			err = size.UnmarshalText([]byte(value))
			l.ConflictBytes = int64(size)
		default:
			return l, fmt.Errorf("%w: no volume option %q: there are history, history-age and conflict-limit", ErrBadName, key)
		}
		if err == nil && (l.History < 0 || l.HistoryAge < 0) {
			err = fmt.Errorf("%q is less than nothing", value)
		}
		if err != nil {
			return l, fmt.Errorf("%w: volume option %s: %w", ErrBadName, key, err)
		}
	}
	return l, nil
}

// limit gives each replica the options that the catalogue says. One written by
// a newer version is passed over.
func (n *Node) limit() error {
	listed, err := n.catalogue.list()
	if err != nil {
		return err
	}
	for _, l := range listed {
		if v := n.db.Volume(l.ID); v != nil {
			limits, err := limitsOf(l.Options)
			if err != nil {
				n.log.Warn("volume options", "volume", l.Name, "err", err)
			}
			v.SetLimits(limits)
		}
	}
	return nil
}
