package main

import (
	"encoding/json"
	"io"
	"text/tabwriter"
	"time"
)

// printJSON prints one indented JSON value, what --output json asks for.
func (env *environment) printJSON(v any) error {
	enc := json.NewEncoder(env.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// print prints v as JSON, or what text writes.
func (env *environment) print(v any, text func(w io.Writer)) error {
	if env.output == "json" {
		return env.printJSON(v)
	}
	w := tabwriter.NewWriter(env.stdout, 0, 0, 2, ' ', 0)
	text(w)
	return w.Flush()
}

// timeOf converts what the admin API gives; 0 is no time.
func timeOf(ns int64) *time.Time {
	if ns == 0 {
		return nil
	}
	t := time.Unix(0, ns).UTC()
	return &t
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// dash stands for an empty cell.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
