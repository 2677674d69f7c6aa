package workload

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
	_ "time/tzdata" // time zones must not depend on the host that happens to lead

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

const (
	cronJobComponent = "cronjob-controller"
	// manyMissed is the number of missed start times from which on something is wrong: the spec or a clock.
	manyMissed = 100
	// longestLook is how many years back start times are looked for. A schedule that names any time names one within five years, and times
	// of centuries, which a status may hold, overflow a duration.
	longestLook = 10
)

// cronJob is one CronJob being planned.
type cronJob struct {
	view *placement.View
	seen *batchv1.CronJob
	want *batchv1.CronJob // own copy: only status is ever written
	now  time.Time        // in the CronJob's time zone
	plan *placement.Plan

	jobs    []*batchv1.Job
	deleted map[types.UID]bool
	events  []placement.Event
	wrong   string // the reason of the event that tells why nothing starts, if it is not the schedule's sense
}

// PlanCronJob plans a CronJob's Jobs and status. A start time has one Job, whose name says which, so that
// none is ever started twice; of several missed ones only the last is made up for. Without a time zone, times
// are UTC, whatever the host's zone. Source of the rules: kubernetes.io/docs/concepts/workloads/controllers/cron-jobs.
func PlanCronJob(v *placement.View, seen *batchv1.CronJob, now time.Time) placement.Plan {
	var plan placement.Plan
	c := &cronJob{view: v, seen: seen, want: seen.DeepCopy(), now: now.UTC(), plan: &plan, deleted: map[types.UID]bool{}}
	c.jobs = v.Jobs.Of(seen.UID)
	c.trackJobs()
	if seen.DeletionTimestamp == nil {
		if err := c.start(); err != nil {
			c.tell(corev1.EventTypeWarning, cmp.Or(c.wrong, "InvalidSchedule"), "%v", err)
		}
		c.truncate()
	}
	if !apiequality.Semantic.DeepEqual(seen.Status, c.want.Status) {
		plan.Add(placement.Updating(placement.UpdateStatus, seen, c.want, c.events...))
	} else {
		plan.Events = c.events
	}
	return plan
}

func (c *cronJob) tell(kind, reason, format string, args ...any) {
	c.events = append(c.events, placement.Event{
		Regarding: c.seen, Type: kind, Reason: reason, Message: fmt.Sprintf(format, args...), Component: cronJobComponent,
	})
}

// trackJobs keeps the list of running Jobs and the time of the last success.
func (c *cronJob) trackJobs() {
	s := &c.want.Status
	byUID := map[types.UID]*batchv1.Job{}
	for _, j := range c.jobs {
		byUID[j.UID] = j
		if ended := conditionOfJob(j, batchv1.JobComplete); ended != nil && ended.Status == corev1.ConditionTrue {
			if at := j.Status.CompletionTime; at != nil && (s.LastSuccessfulTime == nil || at.After(s.LastSuccessfulTime.Time)) {
				s.LastSuccessfulTime = at
			}
		}
	}
	s.Active = slices.DeleteFunc(s.Active, func(r corev1.ObjectReference) bool {
		j := byUID[r.UID]
		switch {
		case j == nil:
			c.tell(corev1.EventTypeNormal, "MissingJob", "Active job went missing: %v", r.Name)
			return true
		case finishedCondition(j) != nil:
			c.tell(corev1.EventTypeNormal, "SawCompletedJob", "Saw completed job: %s, condition: %v", j.Name, finishedCondition(j).Type)
			return true
		}
		return false
	})
}

// start creates the Job of the last start time that has come and is not served yet, and asks to be woken at the next.
func (c *cronJob) start() error {
	schedule, err := c.schedule()
	if err != nil || ptr.Deref(c.seen.Spec.Suspend, false) {
		return err
	}
	due, missed, err := c.lastDue(schedule, true)
	if err != nil {
		return err
	}
	c.plan.RecheckAt(c.nextDue(schedule))
	if due.IsZero() {
		return nil
	}
	name := jobName(c.seen.Name, due)
	served := c.seen.Status.LastScheduleTime != nil && c.seen.Status.LastScheduleTime.Time.Equal(due)
	running := slices.ContainsFunc(c.want.Status.Active, func(r corev1.ObjectReference) bool { return r.Name == name })
	switch {
	case served || running:
		return nil
	case c.tooLate(due):
		c.tell(corev1.EventTypeWarning, "MissSchedule", "Missed scheduled time to start a job: %s", due.UTC().Format(time.RFC1123Z))
		return nil
	case c.seen.Spec.ConcurrencyPolicy == batchv1.ForbidConcurrent && len(c.want.Status.Active) > 0:
		c.tell(corev1.EventTypeNormal, "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid")
		return nil // the running Job's end asks again
	case c.seen.Spec.ConcurrencyPolicy == batchv1.ReplaceConcurrent:
		for _, j := range c.jobs {
			if slices.ContainsFunc(c.want.Status.Active, func(r corev1.ObjectReference) bool { return r.UID == j.UID }) {
				c.delete(j)
			}
		}
	}
	if missed > manyMissed {
		c.tell(corev1.EventTypeWarning, "TooManyMissedTimes", "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew")
	}
	job := c.newJob(name, due)
	if have, exists := c.view.Jobs.Get(job.Namespace, name); exists {
		if !metav1.IsControlledBy(have, c.seen) {
			c.wrong = "FailedCreate"
			return fmt.Errorf("there is a Job %s that is not this CronJob's", name)
		}
		job = have
	} else {
		c.tell(corev1.EventTypeNormal, "SuccessfulCreate", "Created job %v", name)
		c.plan.Add(placement.Change{Verb: placement.Create, Object: job})
	}
	c.want.Status.LastScheduleTime = ptr.To(metav1.NewTime(due))
	if finishedCondition(job) == nil {
		c.want.Status.Active = append(c.want.Status.Active, corev1.ObjectReference{
			Kind: placement.KindJob, APIVersion: jobKind.GroupVersion().String(), Namespace: job.Namespace, Name: job.Name, UID: job.UID,
		})
	}
	return nil
}

func (c *cronJob) tooLate(due time.Time) bool {
	deadline := c.seen.Spec.StartingDeadlineSeconds
	return deadline != nil && due.Add(time.Duration(*deadline)*time.Second).Before(c.now)
}

// schedule parses the schedule and puts now into its time zone.
func (c *cronJob) schedule() (schedule cron.Schedule, err error) {
	if zone := c.seen.Spec.TimeZone; zone != nil {
		location, err := time.LoadLocation(*zone)
		if err != nil {
			c.wrong = "UnknownTimeZone"
			return nil, fmt.Errorf("invalid timeZone: %q: %w", *zone, err)
		}
		c.now = c.now.In(location)
	}
	defer func() { // the library panics on some malformed zones within the text
		if problem := recover(); problem != nil {
			c.wrong = "UnparseableSchedule"
			err = fmt.Errorf("unparseable schedule: %q: %v", c.seen.Spec.Schedule, problem)
		}
	}()
	schedule, err = cron.ParseStandard(c.seen.Spec.Schedule)
	if err != nil {
		c.wrong = "UnparseableSchedule"
		return nil, fmt.Errorf("unparseable schedule: %q : %w", c.seen.Spec.Schedule, err)
	}
	return schedule, nil
}

// since is the time from which on start times count.
func (c *cronJob) since(withDeadline bool) time.Time {
	since := c.seen.CreationTimestamp.Time
	if last := c.seen.Status.LastScheduleTime; last != nil {
		since = last.Time
	}
	if deadline := c.seen.Spec.StartingDeadlineSeconds; withDeadline && deadline != nil {
		if earliest := c.now.Add(-time.Duration(*deadline) * time.Second); earliest.After(since) {
			since = earliest
		}
	}
	if earliest := c.now.AddDate(-longestLook, 0, 0); earliest.After(since) {
		since = earliest
	}
	return since.In(c.now.Location())
}

// lastDue is the last start time that has come, zero if none has, and about how many have come in all. It takes a
// bounded number of steps, however long ago the last one was: it leaps by the distance of the first two.
func (c *cronJob) lastDue(schedule cron.Schedule, withDeadline bool) (time.Time, int64, error) {
	first := schedule.Next(c.since(withDeadline))
	if first.IsZero() {
		return time.Time{}, 0, fmt.Errorf("schedule %q names no time", c.seen.Spec.Schedule)
	}
	second := schedule.Next(first)
	switch {
	case c.now.Before(first):
		return time.Time{}, 0, nil
	case c.now.Before(second):
		return first, 1, nil
	}
	distance := int64(second.Sub(first).Round(time.Second).Seconds())
	if distance < 1 {
		return time.Time{}, 0, fmt.Errorf("time difference between two schedules is less than 1 second")
	}
	missed := int64(c.now.Sub(first).Seconds())/distance + 1
	// The leap may have gone past all start times: of "* 8 * * *", say, at noon. Then it is made shorter.
	for back := distance; ; back *= 2 {
		from := first.Add(time.Duration(missed*distance-distance-back) * time.Second)
		if from.Before(first) {
			from = first.Add(-time.Second)
		}
		var last time.Time
		for at := schedule.Next(from); !at.IsZero() && !at.After(c.now); at = schedule.Next(at) {
			last = at
		}
		if !last.IsZero() {
			return last, missed, nil
		}
	}
}

// nextDue is when the next start time comes.
func (c *cronJob) nextDue(schedule cron.Schedule) time.Time {
	since, _, err := c.lastDue(schedule, false)
	switch {
	case err != nil || since.IsZero() && c.now.After(schedule.Next(c.since(false))):
		since = c.now
	case since.IsZero():
		since = c.since(false)
	}
	return schedule.Next(since)
}

// jobName names the Job of a start time, the same way as upstream, so that a CronJob moved between clusters starts none twice.
func jobName(name string, due time.Time) string { return fmt.Sprintf("%s-%d", name, due.Unix()/60) }

func (c *cronJob) newJob(name string, due time.Time) *batchv1.Job {
	template := c.seen.Spec.JobTemplate.DeepCopy()
	j := &batchv1.Job{Spec: template.Spec}
	j.Name, j.Namespace = name, c.seen.Namespace
	j.UID = placement.NewNames(string(c.seen.UID), name, c.now.UTC().Format(time.RFC3339Nano)).UID()
	j.Labels, j.Annotations = template.Labels, maps.Clone(template.Annotations)
	if j.Annotations == nil {
		j.Annotations = map[string]string{}
	}
	j.Annotations[batchv1.CronJobScheduledTimestampAnnotation] = due.In(c.now.Location()).Format(time.RFC3339)
	j.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(c.seen, cronJobKind)}
	return j
}

func (c *cronJob) delete(j *batchv1.Job) {
	if c.deleted[j.UID] || j.DeletionTimestamp != nil {
		return
	}
	c.deleted[j.UID] = true
	c.want.Status.Active = slices.DeleteFunc(c.want.Status.Active, func(r corev1.ObjectReference) bool { return r.UID == j.UID })
	c.plan.Add(placement.Change{
		Verb: placement.Delete, Object: j, UID: j.UID, Propagation: ptr.To(metav1.DeletePropagationBackground),
		Events: []placement.Event{{
			Regarding: c.seen, Type: corev1.EventTypeNormal, Reason: "SuccessfulDelete", Message: "Deleted job " + j.Name, Component: cronJobComponent,
		}},
	})
}

// truncate deletes the oldest ended Jobs beyond the limits of the history.
func (c *cronJob) truncate() {
	ended := map[batchv1.JobConditionType][]*batchv1.Job{}
	for _, j := range c.jobs {
		if how := finishedCondition(j); how != nil && j.DeletionTimestamp == nil {
			ended[how.Type] = append(ended[how.Type], j)
		}
	}
	limits := map[batchv1.JobConditionType]*int32{
		batchv1.JobComplete: c.seen.Spec.SuccessfulJobsHistoryLimit, batchv1.JobFailed: c.seen.Spec.FailedJobsHistoryLimit,
	}
	for _, how := range []batchv1.JobConditionType{batchv1.JobComplete, batchv1.JobFailed} {
		jobs, limit := ended[how], limits[how]
		if limit == nil || len(jobs) <= int(*limit) {
			continue
		}
		slices.SortFunc(jobs, func(a, b *batchv1.Job) int {
			return cmp.Or(
				ptr.Deref(a.Status.StartTime, metav1.Time{}).Compare(ptr.Deref(b.Status.StartTime, metav1.Time{}).Time), cmp.Compare(a.Name, b.Name),
			)
		})
		for _, j := range jobs[:min(len(jobs)-int(*limit), maxBurst)] {
			c.delete(j)
		}
	}
}
