package placement

// Weight is how many pods a plan for an object looks at: of a Service or a disruption budget those of its namespace, of a workload its own.
// It is 0 for workloads that the view does not have and for kinds that have no pods.
func (v *View) Weight(ref Ref) int {
	switch ref.Kind {
	case KindService, KindBudget:
		return len(v.podsIn[ref.Namespace])
	case KindDeployment:
		d, ok := v.Deployments.Get(ref.Namespace, ref.Name)
		if !ok {
			return 0
		}
		pods := 0
		for _, rs := range v.ReplicaSets.of[d.UID] {
			pods += len(v.podsOf[rs.UID])
		}
		return pods
	case KindReplicaSet:
		return weigh(v, &v.ReplicaSets, ref)
	case KindReplicationController:
		return weigh(v, &v.Replication, ref)
	case KindStatefulSet:
		return weigh(v, &v.StatefulSets, ref)
	case KindDaemonSet:
		return weigh(v, &v.DaemonSets, ref)
	case KindJob:
		return weigh(v, &v.Jobs, ref)
	}
	return 0
}

func weigh[T Object](v *View, table *Table[T], ref Ref) int {
	if o, ok := table.byKey[ref.NamespacedName]; ok {
		return len(v.podsOf[o.GetUID()])
	}
	return 0
}
