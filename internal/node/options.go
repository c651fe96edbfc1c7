package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/synapsefs/synapsefs/internal/config"
	"github.com/synapsefs/synapsefs/store"
)

// Options are those of a volume, the same on all nodes.
type Options struct {
	// Limits is what its replicas keep of what was.
	store.Limits
	// Replicas is how many nodes are to hold it, mounted or not. 0: those that
	// mount it, and those that ever did.
	Replicas int
	// Capacity is the size in bytes that was asked for; 0 if none was. It is
	// told, and not enforced.
	Capacity int64
	// Namespaces whose pods may mount the volume inline.
	Namespaces []string
	// Source is the volume that it was made a copy of; the zero id of any other.
	Source store.VolumeID
	// Snapshot volumes are copies that nobody writes.
	Snapshot bool
	// Ephemeral is the directory of the pod that the volume was made for, on the
	// node that made it; "" of any other volume.
	Ephemeral string
}

// maxReplicas is as many as a volume may ask for.
const maxReplicas = 1000

// volumeOptions reads each option: the only list.
var volumeOptions = map[string]func(o *Options, value string) error{
	"history": func(o *Options, value string) (err error) {
		o.History, err = natural(value)
		return err
	},
	"history-age": func(o *Options, value string) (err error) {
		o.HistoryAge, err = time.ParseDuration(value)
		if err == nil && o.HistoryAge < 0 {
			err = errNegative(value)
		}
		return err
	},
	"conflict-limit": func(o *Options, value string) (err error) {
		o.ConflictBytes, err = size(value)
		return err
	},
	"replicas": func(o *Options, value string) (err error) {
		o.Replicas, err = natural(value)
		if err == nil && (o.Replicas < 1 || o.Replicas > maxReplicas) {
			err = fmt.Errorf("%d is not between 1 and %d", o.Replicas, maxReplicas)
		}
		return err
	},
	"capacity": func(o *Options, value string) (err error) {
		o.Capacity, err = size(value)
		return err
	},
	"namespaces": func(o *Options, value string) error {
		o.Namespaces = strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' })
		for _, name := range o.Namespaces {
			if err := config.CheckLabel(name); err != nil {
				return err
			}
		}
		return nil
	},
	"source": func(o *Options, value string) (err error) {
		o.Source, err = store.ParseVolumeID(value)
		return err
	},
	"snapshot": func(o *Options, value string) (err error) {
		o.Snapshot, err = strconv.ParseBool(value)
		return err
	},
	"ephemeral": func(o *Options, value string) error {
		o.Ephemeral = value
		return nil
	},
}

// lasting are the options that say what a volume is, from its creation on.
var lasting = []string{"ephemeral", "snapshot", "source"}

func natural(value string) (int, error) {
	n, err := strconv.Atoi(value)
	if err == nil && n < 0 {
		err = errNegative(value)
	}
	return n, err
}

func errNegative(value string) error { return fmt.Errorf("%q is less than nothing", value) }

func size(value string) (int64, error) {
	var s config.Size
	err := s.UnmarshalText([]byte(value))
	return int64(s), err
}

// ParseOptions reads the options of a volume. With an error it has read those
// that it could.
func ParseOptions(options map[string]string) (o Options, err error) {
	for _, key := range slices.Sorted(maps.Keys(options)) {
		parse := volumeOptions[key]
		if parse == nil {
			known := strings.Join(slices.Sorted(maps.Keys(volumeOptions)), ", ")
			err = errors.Join(err, fmt.Errorf("%w: no volume option %q: there are %s", ErrBadName, key, known))
		} else if e := parse(&o, options[key]); e != nil {
			err = errors.Join(err, fmt.Errorf("%w: volume option %s: %w", ErrBadName, key, e))
		}
	}
	return o, err
}

// limit gives each replica the options that the catalogue says. One written by
// a newer version is passed over.
func (n *Node) limit(listed []Listing) {
	for _, l := range listed {
		if v := n.db.Volume(l.ID); v != nil {
			o, err := ParseOptions(l.Options)
			if err != nil {
				n.log.Warn("volume options", "volume", l.Name, "err", err)
			}
			v.SetLimits(o.Limits)
		}
	}
}

// SetOptions changes options of a volume, on all nodes. "" takes one away.
func (n *Node) SetOptions(ctx context.Context, name string, change map[string]string) (VolumeInfo, error) {
	ctx, release := n.scope(ctx)
	defer release()
	l, err := n.setOptions(ctx, name, change)
	if err != nil {
		return VolumeInfo{}, fmt.Errorf("set options of volume %q: %w", name, err)
	}
	return n.infoOfVolume(l), nil
}

func (n *Node) setOptions(ctx context.Context, name string, change map[string]string) (Listing, error) {
	l, err := n.findVolume(ctx, name)
	if err != nil {
		return Listing{}, err
	}
	n.creations.Lock() // so that no two calls undo each other
	defer n.creations.Unlock()
	if l, err = n.byID(l.ID.String()); err != nil {
		return Listing{}, err
	}
	options := maps.Clone(l.Options)
	if options == nil {
		options = map[string]string{}
	}
	for key, value := range change {
		if slices.Contains(lasting, key) && value != options[key] {
			return Listing{}, fmt.Errorf("%w: volume option %s is set when the volume is made", ErrBadName, key)
		}
		if options[key] = value; value == "" {
			delete(options, key)
		}
	}
	if _, err := ParseOptions(options); err != nil {
		return Listing{}, err
	}
	if maps.Equal(options, l.Options) {
		return l, nil
	}
	l.Options = options
	if err := n.catalogue.replace(l); err != nil {
		return Listing{}, err
	}
	n.kick()
	n.spread(ctx)
	return l, nil
}

// Ephemerals lists the volumes that were made on this node for one pod each.
func (n *Node) Ephemerals() ([]Listing, error) {
	listed, err := n.catalogue.list()
	return slices.DeleteFunc(listed, func(l Listing) bool { return l.Options["ephemeral"] == "" || l.By != n.cfg.Node }), err
}
