package cli

import (
	"fmt"
	"slices"
	"sync"

	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
)

const kubectlGroup = "Kubernetes (as kubectl; `peer VERB --help` tells more)"

type kubectlVerb struct {
	name   string
	help   string
	hidden bool
}

// kubectlVerbs are the commands of kubectl that this program answers to. What
// is missing has a meaning of its own here (version) or none (plugin).
var kubectlVerbs = []kubectlVerb{
	{name: "get", help: "Display one or many resources."},
	{name: "describe", help: "Show details of a resource."},
	{name: "apply", help: "Apply a configuration by file name or standard input."},
	{name: "create", help: "Create a resource from a file or from standard input."},
	{name: "delete", help: "Delete resources."},
	{name: "edit", help: "Edit a resource on the server."},
	{name: "logs", help: "Print the logs of a container."},
	{name: "exec", help: "Execute a command in a container."},
	{name: "attach", help: "Attach to a running container."},
	{name: "port-forward", help: "Forward local ports to a pod."},
	{name: "cp", help: "Copy files to and from containers."},
	{name: "top", help: "Display CPU and memory use."},
	{name: "rollout", help: "Manage the rollout of a resource."},
	{name: "scale", help: "Set a new size for a workload."},
	{name: "autoscale", help: "Let a workload scale by itself."},
	{name: "label", help: "Update the labels of a resource."},
	{name: "annotate", help: "Update the annotations of a resource."},
	{name: "patch", help: "Update fields of a resource."},
	{name: "replace", help: "Replace a resource."},
	{name: "wait", help: "Wait for a condition."},
	{name: "explain", help: "Get documentation for a resource."},
	{name: "expose", help: "Expose a workload as a Service."},
	{name: "run", help: "Run an image in a pod."},
	{name: "set", help: "Set features on objects."},
	{name: "auth", help: "Inspect authorization."},
	{name: "certificate", help: "Approve or deny certificate requests."},
	{name: "cluster-info", help: "Display cluster information."},
	{name: "cordon", help: "Mark a node as unschedulable."},
	{name: "uncordon", help: "Mark a node as schedulable."},
	{name: "drain", help: "Drain a node for maintenance."},
	{name: "taint", help: "Update the taints of nodes."},
	{name: "debug", help: "Make debugging sessions for workloads and nodes."},
	{name: "diff", help: "Diff the live version against a would-be applied one."},
	{name: "kustomize", help: "Build a kustomization."},
	{name: "events", help: "List events."},
	{name: "proxy", help: "Run a proxy to the API."},
	{name: "api-resources", help: "Print the supported API resources."},
	{name: "api-versions", help: "Print the supported API versions."},
	{name: "config", help: "Modify kubeconfig files."},
	{name: "completion", help: "Print shell completion code for these verbs."},
	{name: "options", hidden: true},
	{name: "kuberc", hidden: true},
	{name: "__complete", hidden: true},
	{name: "__completeNoDesc", hidden: true},
}

func isKubectl(name string) bool {
	return slices.ContainsFunc(kubectlVerbs, func(v kubectlVerb) bool { return v.name == name })
}

// kubectlCommand hands its arguments to kubectl as they are.
type kubectlCommand struct {
	Args []string `arg:"" optional:""`

	verb string
}

// Run carries out one kubectl command with our kubeconfig as the default and
// fail-over between the peers listed in it. Errors are printed, and the process
// exits, as kubectl does: scripts rely on its texts and codes.
func (k *kubectlCommand) Run(root *grammar, std streams) error {
	restore, err := useKubeconfig(root.DataDir)
	if err != nil {
		return err
	}
	defer restore()
	io := genericiooptions.IOStreams{In: std.in, Out: std.out, ErrOut: std.err}
	// The limits are those of kubectl's own main.
	flags := genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().
		WithDiscoveryBurst(300).WithDiscoveryQPS(50).WithWarningPrinter(io)
	reach := failOver(flags.ToRawKubeConfigLoader)
	var hint sync.Once
	flags.WithWrapConfigFn(func(config *rest.Config) *rest.Config {
		// Without any kubeconfig kubectl tries localhost:8080 and says no more.
		if raw, err := flags.ToRawKubeConfigLoader().RawConfig(); err == nil && len(raw.Clusters) == 0 && *flags.APIServer == "" {
			hint.Do(func() { fmt.Fprintln(std.err, "peer: "+errNoKubeconfig.Error()) })
		}
		return reach(config)
	})
	arguments := append([]string{k.verb}, k.Args...)
	command := kubectl.NewKubectlCommand(kubectl.KubectlOptions{
		ConfigFlags: flags, IOStreams: io, Arguments: append([]string{"peer"}, arguments...),
	})
	command.Use = "peer"
	command.SetArgs(arguments)
	command.SetIn(std.in)
	command.SetOut(std.out)
	command.SetErr(std.err)
	cmdutil.CheckErr(cli.RunNoErrOutput(command))
	return nil
}
