package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"shoal/peer/admin"
)

type explainCommand struct {
	Pod       string `arg:"" help:"The pod, or NAMESPACE/POD."`
	Namespace string `short:"n" default:"default" help:"The pod's namespace."`
	Output    string `short:"o" help:"text or json." enum:"text,json" default:"text"`
}

// Run prints every node's answer to the pod, best first.
func (e *explainCommand) Run(ctx context.Context, root *grammar, std streams) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if namespace, pod, both := strings.Cut(e.Pod, "/"); both {
		e.Namespace, e.Pod = namespace, pod
	}
	placement, err := root.local().ExplainPlacement(ctx, e.Namespace, e.Pod)
	if err != nil {
		return err
	}
	if e.Output == "json" {
		encoder := json.NewEncoder(std.out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(placement)
	}
	return printPlacement(std.out, placement)
}

func printPlacement(out io.Writer, p *admin.Placement) error {
	fmt.Fprintf(out, "Pod %s/%s, decided by %s (shard %d)\n", p.Namespace, p.Pod, p.Leader, p.Shard)
	if p.Waits != "" {
		fmt.Fprintf(out, "Nothing is decided about it: %s. Placed once more it would be as follows.\n", p.Waits)
	}
	switch {
	case p.Node != "":
		fmt.Fprintf(out, "It goes to %s.\n", p.Node)
	case p.Preempts != nil:
		fmt.Fprintf(out, "%s\nRoom for it comes on %s when these have left: %s (%d disruption budgets do not allow it).\n",
			p.Message, p.Preempts.Node, strings.Join(p.Preempts.Victims, ", "), p.Preempts.Violations)
	default:
		fmt.Fprintln(out, p.Message)
	}
	plugins := scoring(p.Nodes)
	table := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintf(table, "\nNODE\tTOTAL\t%sWHY NOT\n", headings(plugins))
	for _, node := range p.Nodes {
		name := node.Node
		if name == p.On {
			name += " (here)"
		}
		total := fmt.Sprint(node.Total)
		if len(node.Reasons) > 0 {
			total = "-"
		}
		fmt.Fprintf(table, "%s\t%s\t", name, total)
		for _, plugin := range plugins {
			if len(node.Reasons) > 0 {
				fmt.Fprint(table, "-\t")
			} else {
				fmt.Fprintf(table, "%d\t", node.Scores[plugin])
			}
		}
		fmt.Fprintln(table, strings.Join(node.Reasons, "; "))
	}
	return table.Flush()
}

// scoring are the plugins whose scores differ between nodes: the others decide nothing.
func scoring(nodes []admin.NodePlacement) []string {
	first, differs := map[string]int64{}, map[string]bool{}
	for _, node := range nodes {
		for plugin, score := range node.Scores {
			if have, known := first[plugin]; known && have != score {
				differs[plugin] = true
			}
			first[plugin] = score
		}
	}
	var plugins []string
	for plugin := range differs {
		plugins = append(plugins, plugin)
	}
	slices.Sort(plugins)
	return plugins
}

func headings(plugins []string) string {
	var text strings.Builder
	for _, plugin := range plugins {
		text.WriteString(strings.ToUpper(plugin) + "\t")
	}
	return text.String()
}
