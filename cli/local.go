package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"shoal/peer/admin"
)

// socketName is the administration socket inside the data folder.
const socketName = "peer.sock"

// local is a client of the peer on this host.
func (g *grammar) local() *admin.Client {
	return admin.NewClient(filepath.Join(g.DataDir, socketName))
}

type leaveCommand struct{}

// Run takes the peer out and prints every step.
func (leaveCommand) Run(ctx context.Context, root *grammar, std streams) error {
	return root.local().Leave(ctx, func(line string) { fmt.Fprintln(std.out, line) })
}

type statusCommand struct {
	Output string `short:"o" help:"text or json." enum:"text,json" default:"text"`
}

// Run prints what the peer sees. A peer that names problems makes the command fail.
func (s *statusCommand) Run(ctx context.Context, root *grammar, std streams) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	status, err := root.local().Status(ctx)
	if err != nil {
		return err
	}
	if s.Output == "json" {
		encoder := json.NewEncoder(std.out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(status)
	}
	if err := printStatus(std.out, status); err != nil {
		return err
	}
	if len(status.Problems) > 0 {
		return errors.New(strings.Join(status.Problems, "; "))
	}
	return nil
}

func printStatus(out io.Writer, status *admin.Status) error {
	ready := "ready"
	if !status.Ready {
		ready = "not ready"
	}
	fmt.Fprintf(out, "%s (%s) of cluster %s: %s, at %s, version %s, up %s\n\n",
		status.Name, status.PeerID, status.ClusterID, ready, status.Address, status.Version, time.Since(status.Started).Round(time.Second))
	names := map[string]string{}
	table := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(table, "PEER\tID\tADDRESS\tSTATE\tZONE\tVERSION")
	for _, peer := range status.Peers {
		names[peer.PeerID] = peer.Name
		if peer.Leaving {
			peer.State += ", leaving"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", peer.Name, peer.PeerID, dash(peer.Address), peer.State, dash(peer.Zone), peer.Version)
	}
	fmt.Fprintln(table, "\t\t\t\t\t\t\nSHARD\tLEADER\tVOTERS\tNON-VOTERS\tHERE\tNAMESPACES\tSTATE")
	for _, shard := range status.Shards {
		leader := "none"
		if shard.Leader != "" {
			leader = named(names, shard.Leader)
		}
		here := "no"
		if shard.Local {
			here = "yes"
		}
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\t%d\t%s\n",
			shard.Shard, leader, listNamed(names, shard.Voters), listNamed(names, shard.NonVoters), here, shard.Namespaces, shardState(names, shard))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if len(status.Settings) > 0 {
		fmt.Fprintf(out, "\nSettings (peer set):")
		for _, name := range slices.Sorted(maps.Keys(status.Settings)) {
			fmt.Fprintf(out, " %s=%s", name, status.Settings[name])
		}
		fmt.Fprintln(out)
	}
	return nil
}

// shardState is what there is to say about a shard, in a few words.
func shardState(names map[string]string, shard admin.ShardStatus) string {
	var state []string
	switch {
	case shard.Lost:
		state = append(state, "no quorum: "+listNamed(names, shard.Missing)+" missing")
	case len(shard.Missing) > 0:
		state = append(state, listNamed(names, shard.Missing)+" missing")
	}
	if shard.Quarantine != "" {
		state = append(state, "quarantined here: "+shard.Quarantine)
	}
	for _, peer := range slices.Sorted(maps.Keys(shard.Quarantined)) {
		state = append(state, "quarantined on "+named(names, peer)+": "+shard.Quarantined[peer])
	}
	if shard.Trouble != "" {
		state = append(state, shard.Trouble)
	}
	if state = append(state, shard.Moves...); len(state) == 0 {
		return "ok"
	}
	return strings.Join(state, "; ")
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func named(names map[string]string, id string) string {
	if name := names[id]; name != "" {
		return name
	}
	return id
}

func listNamed(names map[string]string, ids []string) string {
	var list []string
	for _, id := range ids {
		list = append(list, named(names, id))
	}
	slices.Sort(list)
	return dash(strings.Join(list, ","))
}

type imageCommand struct {
	Import imageImportCommand `cmd:"" help:"Import the images of a tarball (docker save, or an OCI layout)."`
	List   imageListCommand   `cmd:"" help:"List the images on this host."`
}

type imageImportCommand struct {
	File string `arg:"" help:"The tarball, or - for the standard input."`
}

// Run sends the tarball to the peer and prints what it imported.
func (i *imageImportCommand) Run(ctx context.Context, root *grammar, std streams) error {
	tarball := std.in
	if i.File != "-" {
		file, err := os.Open(i.File)
		if err != nil {
			return fmt.Errorf("image tarball: %w", err)
		}
		defer file.Close()
		tarball = file
	}
	images, err := root.local().ImportImage(ctx, tarball, func(line string) { fmt.Fprintln(std.err, line) })
	if err != nil {
		return fmt.Errorf("import %s: %w", i.File, err)
	}
	for _, image := range images {
		fmt.Fprintf(std.out, "%s %s\n", image.Name, image.Digest)
	}
	return nil
}

type imageListCommand struct{}

// Run prints the images as a table.
func (imageListCommand) Run(ctx context.Context, root *grammar, std streams) error {
	images, err := root.local().Images(ctx)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(std.out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(table, "IMAGE\tDIGEST\tSIZE")
	for _, image := range images {
		fmt.Fprintf(table, "%s\t%s\t%.1f MB\n", image.Name, image.Digest, float64(image.Size)/1e6)
	}
	return table.Flush()
}
