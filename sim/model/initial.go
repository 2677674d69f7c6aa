package model

import (
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"shoal/consensus/shardmap"
	"shoal/consensus/store"
	"shoal/placement"
)

// plenty is more than any cluster here asks for.
var plenty = corev1.ResourceList{
	corev1.ResourceCPU: resource.MustParse("1000000"), corev1.ResourceMemory: resource.MustParse("1Ei"), corev1.ResourcePods: resource.MustParse("1000000"),
}

// found makes the cluster: nodes that are up and known, shards with leaders, and the workloads as their users wrote them.
func (m *Model) found() {
	for i := range 1 + m.cfg.Shards {
		m.shards = append(m.shards, &shard{
			model: m, number: uint64(i), objects: map[string]placement.Object{}, intents: map[store.RequestID][]placement.Change{},
		})
	}
	for range m.cfg.Nodes {
		m.addNode()
	}
	for i, s := range m.shards {
		m.foundShard(s, i)
	}
	for _, n := range m.nodes {
		n.boot()
	}
	for _, s := range m.shards {
		first := s.replicas[0]
		first.role, first.progress = leading, map[uint64]*progress{}
		begin := func() { first.propose(&entry{}, func(store.Result, error) {}) }
		if m.cfg.Placed && s.number > 0 {
			m.after(leadersLate, "lead", begin)
		} else {
			begin()
		}
	}
	m.after(500*time.Millisecond, "assign", m.writeAssignments)
	pods := 0
	for _, w := range m.cfg.Workloads {
		m.deploy(w, time.Second+m.crowded(pods))
		pods += w.Replicas
	}
}

// Pods that run already are written in portions: what is under way of each costs several times the memory of what stays.
const (
	portionPods  = 20_000
	portionPause = 40 * time.Millisecond
)

// leadersLate is when the leaders of data shards begin in a cluster that runs already: the nodes have registered by then. Leaders read them at
// once instead of being told of each, which is nodes times shards.
const leadersLate = 700 * time.Millisecond

// crowded is how much later a workload is written that comes after so many pods.
func (m *Model) crowded(pods int) time.Duration {
	if !m.cfg.Placed {
		return 0
	}
	return time.Duration(pods/portionPods) * portionPause
}

// foundShard makes the replicas of a shard, as placement/shards would have placed them.
func (m *Model) foundShard(s *shard, index int) {
	count := min(m.wantedVoters(), len(m.nodes))
	if len(m.nodes) < 3 {
		count = 1
	}
	members := shardmap.Members{Voters: map[uint64]string{}}
	s.assignment = shardmap.Assignment{Shard: s.number, Next: uint64(count + 1)}
	// Voters stand next to each other in the list of nodes, so in different zones where there are as many.
	for k := range count {
		n, id := m.nodes[(index*count+k)%len(m.nodes)], uint64(k+1)
		members.Voters[id] = n.name
		s.assignment.Replicas = append(s.assignment.Replicas, shardmap.Replica{Peer: n.name, ID: id, Voter: true, Disk: n.disk.identity})
		m.newReplica(s, n, id).term = 1
	}
	for _, r := range s.replicas {
		r.members = cloneMembers(members)
	}
	s.voters, s.voterIDs = count, sortedKeys(members.Voters)
}

// writeAssignments puts into the meta shard who holds what, from where it is read ever after.
func (m *Model) writeAssignments() {
	for _, s := range m.shards {
		m.writeAssignment(s)
	}
}

func (m *Model) addNode() *node {
	index := len(m.nodes)
	n := &node{
		model: m, name: fmt.Sprintf("n%d", index+1), index: index, zone: string(rune('a' + index%m.cfg.Zones)), pods: map[types.UID]*container{},
		disk: diskState{identity: fmt.Sprintf("disk%d", index+1)},
	}
	m.nodes = append(m.nodes, n)
	m.byName[n.name] = n
	return n
}

// shardOf is the shard that holds a namespace. Which one it is does not matter here, only that it stays.
func (m *Model) shardOf(namespace string) *shard {
	h := fnv.New32a()
	h.Write([]byte(namespace))
	return m.shards[1+int(h.Sum32())%m.cfg.Shards]
}

// deployRetry is when a user tries again to write a workload.
const deployRetry = time.Second

// deploy writes a workload after a while; at the start that is a second, so that the nodes have reported by then.
func (m *Model) deploy(w Workload, delay time.Duration) {
	s := m.shardOf(w.Name)
	meta := metav1.ObjectMeta{Namespace: w.Name, Name: w.Name}
	labels := map[string]string{"app": w.Name}
	if w.Template != nil {
		labels = map[string]string{workloadLabel: w.Name}
	}
	var set placement.Object
	if w.Job != nil {
		set = jobObject(w, meta)
	} else if w.Daemon {
		set = &appsv1.DaemonSet{ObjectMeta: meta, Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template(w, labels), RevisionHistoryLimit: ptr.To[int32](10),
			UpdateStrategy: appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: &appsv1.RollingUpdateDaemonSet{
				MaxUnavailable: ptr.To(intstr.FromInt32(1)), MaxSurge: ptr.To(intstr.FromInt32(0)),
			}},
		}}
	} else if w.Stateful {
		set = &appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{
			Replicas: ptr.To(int32(w.Replicas)), Selector: &metav1.LabelSelector{MatchLabels: labels}, ServiceName: w.Name, Template: template(w, labels),
			RevisionHistoryLimit: ptr.To[int32](10), PodManagementPolicy: appsv1.OrderedReadyPodManagement,
			UpdateStrategy: appsv1.StatefulSetUpdateStrategy{
				Type: appsv1.RollingUpdateStatefulSetStrategyType, RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: ptr.To[int32](0)},
			},
		}}
	} else {
		set = &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To(int32(w.Replicas)), Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template(w, labels),
			RevisionHistoryLimit: ptr.To[int32](10), ProgressDeadlineSeconds: ptr.To[int32](600),
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{
				MaxSurge: ptr.To(intstr.FromString("25%")), MaxUnavailable: ptr.To(intstr.FromString("25%")),
			}},
		}}
	}
	service := &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		Selector: labels, ClusterIP: "10.96.1.1", IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
		Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080)}},
	}}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.Name}}
	m.after(delay, "deploy", func() {
		meta := m.shards[0].leader
		if s.leader == nil || meta == nil {
			m.deploy(w, deployRetry) // a fault came first: the user tries again
			return
		}
		m.propose(meta, m.shards[0], []placement.Change{{Verb: placement.Create, Object: namespace}}, func(error) {})
		changes, undo := []placement.Change{{Verb: placement.Create, Object: set}}, func() {}
		if deployment, ok := set.(*appsv1.Deployment); ok && m.cfg.Placed {
			changes, undo = m.running(deployment)
		}
		if w.Job == nil {
			changes = append([]placement.Change{{Verb: placement.Create, Object: service}}, changes...)
		}
		for i, spec := range w.Budgets {
			changes = append(changes, placement.Change{Verb: placement.Create, Object: &policyv1.PodDisruptionBudget{
				ObjectMeta: metav1.ObjectMeta{Namespace: w.Name, Name: fmt.Sprintf("%s-%d", w.Name, i)}, Spec: spec,
			}})
		}
		m.propose(s.leader, s, changes, func(err error) {
			if _, there := s.objects[keyOf(set)]; !there {
				undo()
				m.deploy(w, deployRetry)
			}
		})
	})
}

// workloadLabel is added to pods that have labels of their own.
const workloadLabel = "sim.shoal.io/workload"

// template is the pod template after admission: with the tolerations that D8 gives by default.
func template(w Workload, labels map[string]string) corev1.PodTemplateSpec {
	var tolerations []corev1.Toleration
	for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		if w.Daemon {
			break // workload.PlanDaemonSet gives them tolerations without end
		}
		tolerations = append(tolerations, corev1.Toleration{
			Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To[int64](5),
		})
	}
	if w.Template != nil {
		t := *w.Template.DeepCopy()
		t.Labels = maps.Clone(labels)
		maps.Copy(t.Labels, w.Template.Labels)
		for _, toleration := range tolerations {
			if !slices.ContainsFunc(t.Spec.Tolerations, func(own corev1.Toleration) bool {
				return (own.Key == toleration.Key || own.Key == "") && (own.Effect == toleration.Effect || own.Effect == "")
			}) {
				t.Spec.Tolerations = append(t.Spec.Tolerations, toleration)
			}
		}
		return t
	}
	restart := corev1.RestartPolicyAlways
	if w.Job != nil {
		restart = corev1.RestartPolicyNever
	}
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
		Containers:    []corev1.Container{{Name: "main", Image: "example.org/" + w.Name + ":1", Resources: corev1.ResourceRequirements{Requests: w.Requests}}},
		RestartPolicy: restart, SchedulerName: corev1.DefaultSchedulerName, Tolerations: tolerations,
		TerminationGracePeriodSeconds: ptr.To[int64](30),
	}}
}
