package oracle

import (
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	schedulerconfig "k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	internalcache "k8s.io/kubernetes/pkg/scheduler/backend/cache"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/defaultpreemption"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/feature"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/names"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/nodevolumelimits"
	"k8s.io/kubernetes/pkg/scheduler/framework/preemption"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/metrics"

	utilfeature "k8s.io/apiserver/pkg/util/feature"

	"shoal/placement"
)

// upstream is kube-scheduler's default profile over a cluster that does not change.
type upstream struct {
	ctx      context.Context
	profile  framework.Framework
	preempt  *defaultpreemption.DefaultPreemption
	snapshot *internalcache.Snapshot
	nodes    []fwk.NodeInfo
	budgets  []*policyv1.PodDisruptionBudget
}

// nominator knows the nominated pods of a cluster that does not change. The rest of the interface
// belongs to the queue and is not called.
type nominator struct {
	fwk.PodNominator
	on map[string][]fwk.PodInfo
}

// NominatedPodsForNode gives copies: the framework adds them to nodes.
func (n nominator) NominatedPodsForNode(node string) (pods []fwk.PodInfo) {
	for _, p := range n.on[node] {
		pods = append(pods, p.(*framework.PodInfo).DeepCopy())
	}
	return pods
}

// activator stands for the queue, to which upstream returns pods whose victims it could not evict:
// here there is nobody to evict.
type activator struct{}

func (activator) Activate(klog.Logger, map[string]*corev1.Pod) {}

// tb is what rapid.T and testing.T share.
type tb interface {
	Helper()
	Fatalf(format string, args ...any)
}

// silent drops klog's output: the plugins log errors that are answers here.
func silent(t *testing.T) context.Context {
	metrics.Register()
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	klog.InitFlags(flags)
	for name, value := range map[string]string{"logtostderr": "false", "stderrthreshold": "FATAL"} {
		if err := flags.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	klog.SetOutput(io.Discard)
	return klog.NewContext(t.Context(), klog.Logger{})
}

func newUpstream(ctx context.Context, t tb, objects []placement.Object) *upstream {
	t.Helper()
	u := &upstream{ctx: ctx}
	client := fake.NewClientset()
	factory := informers.NewSharedInformerFactory(client, 0)
	var pods, waiting []*corev1.Pod
	var nodes []*corev1.Node
	for _, o := range objects {
		if err := indexer(factory, o).Add(o); err != nil {
			t.Fatalf("%v", err)
		}
		switch o := o.(type) {
		case *corev1.Node:
			nodes = append(nodes, o)
		case *policyv1.PodDisruptionBudget:
			u.budgets = append(u.budgets, o)
		case *corev1.Pod:
			switch {
			case placement.Finished(o):
			case o.Spec.NodeName != "":
				pods = append(pods, o)
			case o.Status.NominatedNodeName != "":
				waiting = append(waiting, o)
			}
		}
	}
	u.snapshot = internalcache.NewSnapshot(pods, nodes)
	nominated := nominator{on: map[string][]fwk.PodInfo{}}
	for _, pod := range waiting {
		info, err := framework.NewPodInfo(pod)
		if err != nil {
			t.Fatalf("%v", err)
		}
		nominated.on[pod.Status.NominatedNodeName] = append(nominated.on[pod.Status.NominatedNodeName], info)
	}
	u.profile = u.newProfile(ctx, t, client, factory, nominated)
	list, err := u.snapshot.NodeInfos().List()
	if err != nil {
		t.Fatalf("%v", err)
	}
	u.nodes = list
	return u
}

func (u *upstream) newProfile(ctx context.Context, t tb, client *fake.Clientset, factory informers.SharedInformerFactory, nominated fwk.PodNominator) framework.Framework {
	t.Helper()
	config, err := latest.Default()
	if err != nil {
		t.Fatalf("%v", err)
	}
	profile := config.Profiles[0].DeepCopy()
	profile.Plugins.MultiPoint.Enabled = slices.DeleteFunc(profile.Plugins.MultiPoint.Enabled, func(p schedulerconfig.Plugin) bool {
		return p.Name == names.DynamicResources
	})
	registry := plugins.NewInTreeRegistry()
	features := feature.NewSchedulerFeaturesFromGates(utilfeature.DefaultFeatureGate)
	registry[names.DefaultPreemption] = func(ctx context.Context, args runtime.Object, h fwk.Handle) (fwk.Plugin, error) {
		plugin, err := defaultpreemption.New(ctx, args, h, features)
		if err == nil {
			u.preempt = plugin
			plugin.Executor.PreemptPod = func(context.Context, preemption.Candidate, preemption.ExecutorPreemptor, *corev1.Pod, string) (bool, error) {
				return false, nil
			}
		}
		return plugin, err
	}
	f, err := frameworkruntime.NewFramework(ctx, registry, profile,
		frameworkruntime.WithClientSet(client),
		frameworkruntime.WithInformerFactory(factory),
		frameworkruntime.WithSnapshotSharedLister(u.snapshot),
		frameworkruntime.WithMutableSnapshotLister(u.snapshot),
		frameworkruntime.WithPodNominator(nominated),
		frameworkruntime.WithPodActivator(activator{}),
		frameworkruntime.WithEventRecorder(&events.FakeRecorder{}),
		frameworkruntime.WithSharedCSIManager(nodevolumelimits.NewCSIManager(factory.Storage().V1().CSINodes().Lister())),
		frameworkruntime.WithParallelism(1),
	)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return f
}

// indexer is where an informer of the object's kind keeps it.
func indexer(f informers.SharedInformerFactory, o placement.Object) cache.Indexer {
	core, storage, apps := f.Core().V1(), f.Storage().V1(), f.Apps().V1()
	switch kind := strings.TrimPrefix(fmt.Sprintf("%T", o), "*v1."); kind {
	case "Pod":
		return core.Pods().Informer().GetIndexer()
	case "Node":
		return core.Nodes().Informer().GetIndexer()
	case "Namespace":
		return core.Namespaces().Informer().GetIndexer()
	case "Service":
		return core.Services().Informer().GetIndexer()
	case "PersistentVolume":
		return core.PersistentVolumes().Informer().GetIndexer()
	case "PersistentVolumeClaim":
		return core.PersistentVolumeClaims().Informer().GetIndexer()
	case "ReplicaSet":
		return apps.ReplicaSets().Informer().GetIndexer()
	case "StatefulSet":
		return apps.StatefulSets().Informer().GetIndexer()
	case "StorageClass":
		return storage.StorageClasses().Informer().GetIndexer()
	case "CSINode":
		return storage.CSINodes().Informer().GetIndexer()
	case "CSIDriver":
		return storage.CSIDrivers().Informer().GetIndexer()
	case "CSIStorageCapacity":
		return storage.CSIStorageCapacities().Informer().GetIndexer()
	case "VolumeAttachment":
		return storage.VolumeAttachments().Informer().GetIndexer()
	case "PodDisruptionBudget":
		return f.Policy().V1().PodDisruptionBudgets().Informer().GetIndexer()
	default:
		panic("no informer for " + kind)
	}
}

// verdict is what upstream says about one pod.
type verdict struct {
	message  string                      // of the event, if no node is feasible
	reasons  map[string][]string         // by infeasible node
	scores   map[string]map[string]int64 // by feasible node and plugin, weighted; nil with less than two
	totals   map[string]int64
	victims  map[string][]string // by node where preemption would help: the victims' names, sorted
	violated map[string]int64
	chosen   string // the node upstream would preempt on
}

// judge does what kube-scheduler's schedulePod and PostFilter do, for all nodes.
func (u *upstream) judge(t tb, pod *corev1.Pod) verdict {
	t.Helper()
	v := verdict{reasons: map[string][]string{}}
	if len(u.nodes) == 0 {
		v.message = "no nodes available to schedule pods"
		return v
	}
	state := framework.NewCycleState()
	diagnosis := framework.Diagnosis{NodeToStatus: framework.NewDefaultNodeToStatus()}
	result, status, unscheduled := u.profile.RunPreFilterPlugins(u.ctx, state, pod)
	var feasible []fwk.NodeInfo
	if !status.IsSuccess() {
		if !status.IsRejected() {
			t.Fatalf("upstream fails on %s: %v", pod.Name, status.AsError())
		}
		diagnosis.NodeToStatus.SetAbsentNodesStatus(status)
		diagnosis.PreFilterMsg = status.Message()
		for _, n := range u.nodes {
			v.reasons[n.Node().Name] = status.Reasons()
		}
	} else {
		if !result.AllNodes() {
			text := fmt.Sprintf("node(s) didn't satisfy plugin(s) %v", slices.Sorted(maps.Keys(unscheduled)))
			diagnosis.NodeToStatus.SetAbsentNodesStatus(fwk.NewStatus(fwk.UnschedulableAndUnresolvable, text))
		}
		feasible = u.filter(t, state, pod, result, diagnosis.NodeToStatus, v.reasons)
	}
	if len(feasible) == 0 {
		u.postFilter(t, state, pod, &diagnosis, &v)
		err := &framework.FitError{Pod: pod, NumAllNodes: len(u.nodes), Diagnosis: diagnosis}
		v.message = err.Error()
		return v
	}
	if len(feasible) > 1 {
		u.score(t, state, pod, feasible, &v)
	}
	return v
}

func (u *upstream) filter(t tb, state fwk.CycleState, pod *corev1.Pod, only *fwk.PreFilterResult, statuses *framework.NodeToStatus, reasons map[string][]string) (feasible []fwk.NodeInfo) {
	t.Helper()
	for _, n := range u.nodes {
		name := n.Node().Name
		if !only.AllNodes() && !only.NodeNames.Has(name) {
			reasons[name] = statuses.AbsentNodesStatus().Reasons()
			continue
		}
		status := u.profile.RunFilterPluginsWithNominatedPods(u.ctx, state, pod, n)
		switch {
		case status.IsSuccess():
			feasible = append(feasible, n)
		case status.IsRejected():
			statuses.Set(name, status)
			reasons[name] = status.Reasons()
		default:
			t.Fatalf("upstream fails on %s: %v", pod.Name, status.AsError())
		}
	}
	return feasible
}

func (u *upstream) score(t tb, state fwk.CycleState, pod *corev1.Pod, feasible []fwk.NodeInfo, v *verdict) {
	t.Helper()
	if status := u.profile.RunPreScorePlugins(u.ctx, state, pod, feasible); !status.IsSuccess() {
		t.Fatalf("upstream's prescore fails: %v", status.AsError())
	}
	list, status := u.profile.RunScorePlugins(u.ctx, state, pod, feasible)
	if !status.IsSuccess() {
		t.Fatalf("upstream's score fails: %v", status.AsError())
	}
	v.scores, v.totals = map[string]map[string]int64{}, map[string]int64{}
	for _, n := range list {
		v.scores[n.Name], v.totals[n.Name] = map[string]int64{}, n.TotalScore
		for _, s := range n.Scores {
			v.scores[n.Name][s.Name] = s.Score
		}
	}
}

// postFilter asks for victims: on every node that could help, not on a sample.
func (u *upstream) postFilter(t tb, state fwk.CycleState, pod *corev1.Pod, diagnosis *framework.Diagnosis, v *verdict) {
	t.Helper()
	_, status := u.profile.RunPostFilterPlugins(u.ctx, state, pod, diagnosis.NodeToStatus)
	diagnosis.PostFilterMsg = status.Message()
	if !status.IsSuccess() {
		return
	}
	potential, err := diagnosis.NodeToStatus.NodesForStatusCode(u.snapshot.NodeInfos(), fwk.Unschedulable)
	if err != nil {
		t.Fatalf("%v", err)
	}
	candidates, _, err := u.preempt.Evaluator.DryRunPreemption(u.ctx, state, pod, potential, u.budgets, 0, int32(len(potential)))
	if err != nil {
		t.Fatalf("%v", err)
	}
	v.victims, v.violated = map[string][]string{}, map[string]int64{}
	for _, c := range candidates {
		for _, p := range c.Victims().Pods {
			v.victims[c.Name()] = append(v.victims[c.Name()], p.Name)
		}
		slices.Sort(v.victims[c.Name()])
		v.violated[c.Name()] = c.Victims().NumPDBViolations
	}
	v.chosen = u.preempt.Evaluator.SelectCandidate(u.ctx, candidates).Name()
}
