package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
)

// A demoView is what the demo found, as printed by --output json.
type demoView struct {
	Dir   string    `json:"dir"`
	Nodes []demoRow `json:"nodes"`
	Edit  *demoEdit `json:"edit"`
}

// A demoRow is one node's tree. Lag counts from the end of the unpacking until
// the node held all of it.
type demoRow struct {
	Node  string  `json:"node"`
	Files int     `json:"files"`
	Bytes int64   `json:"bytes"`
	Hash  string  `json:"hash"`
	Lag   float64 `json:"lag_seconds"`
}

// A demoEdit tells how long an edit on one node took to each other one.
type demoEdit struct {
	Node    string    `json:"node"`
	File    string    `json:"file"`
	Seconds []float64 `json:"seconds"`
}

// compare prints the nodes' trees; that they differ is an error.
func (d *demo) compare(rows []demoRow) error {
	equal := true
	for _, r := range rows {
		equal = equal && r.Hash == rows[0].Hash
	}
	if d.env.output == "text" {
		if err := d.env.print(nil, func(w io.Writer) { printDemoRows(w, rows) }); err != nil {
			return err
		}
	}
	if !equal {
		return errors.New("the trees differ")
	}
	d.say("all %d trees are equal: names, kinds, modes, owners, mtimes, links, contents", len(rows))
	return nil
}

func printDemoRows(w io.Writer, rows []demoRow) {
	fmt.Fprintln(w, "NODE\tFILES\tBYTES\tTREE HASH\tLAG")
	for n, r := range rows {
		lag := "-"
		if n > 0 {
			lag = fmt.Sprintf("%.1f ms", r.Lag*1000)
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%.16s\t%s\n", r.Node, r.Files, r.Bytes, r.Hash, lag)
	}
}

// explain says how to play with what --keep left running.
func (d *demo) explain() {
	self, err := os.Executable()
	if err != nil {
		self = "synapsefs"
	}
	first := d.cluster.Nodes[0]
	umount, stop, sockets := "", "kill", ""
	for _, nd := range d.cluster.Nodes {
		umount += fmt.Sprintf("  %s --socket %s umount %s\n", self, nd.Socket, nd.Mount)
		stop += " " + strconv.Itoa(nd.PID())
		sockets += fmt.Sprintf("  %s  %s\n", nd.Name, nd.Mount)
	}
	fmt.Fprintf(d.env.stdout, `
It is still running. The three mounts:
%s
Write in one, look in another:
  date > %s; sleep 0.1; cat %s

Ask a daemon:
  %s --socket %s status

Unmount, stop it and remove everything:
%s  %s; sleep 2; rm -r --one-file-system %s
`, sockets,
		filepath.Join(first.Mount, "now"), filepath.Join(d.cluster.Nodes[1].Mount, "now"),
		self, first.Socket, umount, stop, d.dir)
}
