package workload

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"shoal/placement"
	"shoal/placement/internal/world"
)

// crons is a world with one CronJob named tick, made at 12:00 UTC on 1 November 2026.
type crons struct {
	*world.World
	t fataler
}

func newCrons(t fataler, schedule string, edits ...func(*batchv1.CronJob)) crons {
	t.Helper()
	c := &batchv1.CronJob{}
	c.Name, c.Namespace, c.UID = "tick", "default", "cron-uid"
	c.Spec = batchv1.CronJobSpec{
		Schedule: schedule, ConcurrencyPolicy: batchv1.AllowConcurrent, Suspend: ptr.To(false),
		SuccessfulJobsHistoryLimit: ptr.To[int32](3), FailedJobsHistoryLimit: ptr.To[int32](1), JobTemplate: batchv1.JobTemplateSpec{Spec: makeJob().Spec},
	}
	c.Spec.JobTemplate.Labels, c.Spec.JobTemplate.Annotations = map[string]string{"l": "1"}, map[string]string{"a": "2"}
	for _, edit := range edits {
		edit(c)
	}
	w := crons{world.New(), t}
	w.Put(c)
	return w
}

func (w crons) cron() *batchv1.CronJob {
	c, _ := w.View.CronJobs.Get("default", "tick")
	return c
}

func (w crons) plan() placement.Plan {
	w.t.Helper()
	plan := Plan(w.View, placement.Ref{Kind: placement.KindCronJob, NamespacedName: keyOf(w.cron())}, w.Now)
	if err := w.Apply(plan); err != nil {
		w.t.Fatalf("apply: %v", err)
	}
	return plan
}

// rest plans until nothing changes, and returns when the last plan wants to be asked again.
func (w crons) rest() time.Time {
	w.t.Helper()
	for range 10 {
		if plan := w.plan(); len(plan.Changes) == 0 {
			return plan.Recheck
		}
	}
	w.t.Fatalf("no rest")
	return time.Time{}
}

// runs follows the plans' own wake-ups until a time, and lists when Jobs were made.
func (w *crons) runs(until time.Time) []string {
	var times []string
	seen := map[string]bool{}
	for {
		again := w.rest()
		for _, j := range w.View.Jobs.In("default") {
			if !seen[j.Name] {
				seen[j.Name] = true
				times = append(times, j.Annotations[batchv1.CronJobScheduledTimestampAnnotation])
			}
		}
		if again.IsZero() || again.After(until) {
			return times
		}
		w.Now = again
	}
}

func (w crons) finish(how batchv1.JobConditionType) {
	for _, j := range w.View.Jobs.In("default") {
		if finishedCondition(j) == nil {
			j = j.DeepCopy()
			j.Status.Conditions = []batchv1.JobCondition{{Type: how, Status: corev1.ConditionTrue}}
			j.Status.StartTime, j.Status.CompletionTime = &j.CreationTimestamp, ptr.To(metav1.NewTime(w.Now))
			w.Put(j)
		}
	}
}

func TestCronJobTimes(t *testing.T) {
	for _, test := range []struct {
		schedule, zone string
		until          time.Duration
		want           []string
	}{
		{"*/20 * * * *", "", time.Hour, []string{"2026-11-01T12:20:00Z", "2026-11-01T12:40:00Z", "2026-11-01T13:00:00Z"}},
		{"@hourly", "", 2 * time.Hour, []string{"2026-11-01T13:00:00Z", "2026-11-01T14:00:00Z"}},
		{"30 9 * * *", "Asia/Tokyo", 24 * time.Hour, []string{"2026-11-02T09:30:00+09:00"}},
		// The clocks of New York go from 2:00 to 3:00 on 14 March 2027: half past two does not exist that day.
		{"30 2 13-15 3 *", "America/New_York", 135 * 24 * time.Hour, []string{"2027-03-13T02:30:00-05:00", "2027-03-15T02:30:00-04:00"}},
		{"0 0 31 2 *", "", 24 * time.Hour, nil},
		{"nonsense", "", time.Hour, nil},
		{"* * * * *", "Mars/Olympus", time.Hour, nil},
		{"TZ=0", "", time.Hour, nil},
	} {
		t.Run(test.schedule, func(t *testing.T) {
			w := newCrons(t, test.schedule, func(c *batchv1.CronJob) {
				if test.zone != "" {
					c.Spec.TimeZone = &test.zone
				}
			})
			if got := w.runs(w.Now.Add(test.until)); !slices.Equal(got, test.want) {
				t.Errorf("ran at %v, want %v", got, test.want)
			}
		})
	}
}

func TestCronJobMakesJobs(t *testing.T) {
	w := newCrons(t, "* * * * *")
	w.Now = w.rest()
	w.rest()
	due := time.Date(2026, 11, 1, 12, 1, 0, 0, time.UTC)
	j, ok := w.View.Jobs.Get("default", fmt.Sprintf("tick-%d", due.Unix()/60))
	if !ok || j.Labels["l"] != "1" || j.Annotations["a"] != "2" || !metav1.IsControlledBy(j, w.cron()) {
		t.Fatalf("job %+v", j)
	}
	s := w.cron().Status
	if len(s.Active) != 1 || s.Active[0].UID != j.UID || !s.LastScheduleTime.Time.Equal(due) || !slices.Contains(w.Events, "SuccessfulCreate: Created job "+j.Name) {
		t.Errorf("status %+v, events %q", s, w.Events)
	}
	w.finish(batchv1.JobComplete)
	w.rest()
	if s := w.cron().Status; len(s.Active) != 0 || s.LastSuccessfulTime == nil {
		t.Errorf("status %+v", s)
	}
}

func TestCronJobConcurrency(t *testing.T) {
	count := func(policy batchv1.ConcurrencyPolicy) (int, crons) {
		w := newCrons(t, "* * * * *", func(c *batchv1.CronJob) { c.Spec.ConcurrencyPolicy = policy })
		w.runs(w.Now.Add(3*time.Minute + time.Second))
		return w.View.Jobs.Len(), w
	}
	if n, _ := count(batchv1.AllowConcurrent); n != 3 {
		t.Errorf("Allow: %d jobs", n)
	}
	if n, w := count(batchv1.ReplaceConcurrent); n != 1 || len(w.cron().Status.Active) != 1 {
		t.Errorf("Replace: %d jobs, %d active", n, len(w.cron().Status.Active))
	}
	n, w := count(batchv1.ForbidConcurrent)
	if n != 1 {
		t.Errorf("Forbid: %d jobs", n)
	}
	// When the running one ends, the last missed start is made up for.
	w.finish(batchv1.JobComplete)
	w.rest()
	if n := w.View.Jobs.Len(); n != 2 {
		t.Errorf("Forbid: %d jobs after the first has ended", n)
	}
}

func TestCronJobHistoryAndSuspension(t *testing.T) {
	w := newCrons(t, "* * * * *")
	for i := range 12 {
		w.Now = w.rest()
		w.rest()
		w.finish([]batchv1.JobConditionType{batchv1.JobComplete, batchv1.JobFailed}[i%2])
		w.rest()
	}
	if n := w.View.Jobs.Len(); n != 4 {
		t.Errorf("%d jobs are kept, want 3 complete and 1 failed", n)
	}
	c := w.cron().DeepCopy()
	c.Spec.Suspend = ptr.To(true)
	w.Put(c)
	w.Now = w.Now.Add(time.Hour)
	if again := w.rest(); !again.IsZero() || w.View.Jobs.Len() != 4 {
		t.Errorf("suspended, and asks again at %s with %d jobs", again, w.View.Jobs.Len())
	}
}

func TestCronJobMissedStarts(t *testing.T) {
	late := func(edit func(*batchv1.CronJob)) crons {
		w := newCrons(t, "0 * * * *", edit)
		w.Now = w.Now.Add(200*time.Hour + 20*time.Minute)
		w.rest()
		return w
	}
	if w := late(func(*batchv1.CronJob) {}); w.View.Jobs.Len() != 1 || !slices.ContainsFunc(w.Events, func(e string) bool { return e[:18] == "TooManyMissedTimes" }) {
		t.Errorf("%d jobs, events %q", w.View.Jobs.Len(), w.Events)
	}
	if w := late(func(c *batchv1.CronJob) { c.Spec.StartingDeadlineSeconds = ptr.To[int64](600) }); w.View.Jobs.Len() != 0 {
		t.Errorf("%d jobs after the deadline", w.View.Jobs.Len())
	}
	if w := late(func(c *batchv1.CronJob) { c.Spec.StartingDeadlineSeconds = ptr.To[int64](1800) }); w.View.Jobs.Len() != 1 {
		t.Errorf("%d jobs before the deadline", w.View.Jobs.Len())
	}
	// A status from long ago is no reason to count for long.
	if w := late(func(c *batchv1.CronJob) {
		c.Spec.Schedule = "* * * * *"
		c.Status.LastScheduleTime = &metav1.Time{Time: time.Date(2, 1, 1, 0, 0, 0, 0, time.UTC)}
	}); w.View.Jobs.Len() != 1 {
		t.Errorf("%d jobs after two thousand years", w.View.Jobs.Len())
	}
	// A clock that was set back starts nothing twice.
	w := late(func(*batchv1.CronJob) {})
	w.Now = w.Now.Add(-100 * time.Hour)
	w.rest()
	if n := w.View.Jobs.Len(); n != 1 {
		t.Errorf("%d jobs after the clock was set back", n)
	}
}

// TestCronJobSaysWhyNothingStarts: nothing of the object changes by these, so the plan has nothing but events.
func TestCronJobSaysWhyNothingStarts(t *testing.T) {
	for _, test := range []struct {
		schedule, want string
		edit           func(*batchv1.CronJob)
	}{
		{"nonsense", "UnparseableSchedule: unparseable schedule: \"nonsense\" : ", func(*batchv1.CronJob) {}},
		{"TZ=0", "UnparseableSchedule: unparseable schedule: \"TZ=0\"", func(*batchv1.CronJob) {}},
		{"* * * * *", "UnknownTimeZone: invalid timeZone: \"Mars/Olympus\": ", func(c *batchv1.CronJob) { c.Spec.TimeZone = ptr.To("Mars/Olympus") }},
		{"0 0 31 2 *", "InvalidSchedule: ", func(*batchv1.CronJob) {}},
		{"0 * * * *", "JobAlreadyActive: Not starting job because prior execution is running and concurrency policy is Forbid", func(c *batchv1.CronJob) {
			c.Spec.ConcurrencyPolicy = batchv1.ForbidConcurrent
		}},
	} {
		t.Run(test.want[:12], func(t *testing.T) {
			w := newCrons(t, test.schedule, test.edit)
			w.Now = w.Now.Add(time.Hour)
			w.rest() // it runs the first time, if it may
			w.Now = w.Now.Add(time.Hour + 2*time.Minute)
			plan := w.plan()
			if len(plan.Changes) != 0 || len(plan.Events) != 1 || !strings.HasPrefix(plan.Events[0].Reason+": "+plan.Events[0].Message, test.want) {
				t.Errorf("%d changes, events %+v, want %s", len(plan.Changes), plan.Events, test.want)
			}
		})
	}
}

// TestLastDueIsTheLast compares the leap to the last start time with walking there.
func TestLastDueIsTheLast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		field := func(name string, low, high int) string {
			from := rapid.IntRange(low, high).Draw(t, name)
			return rapid.SampledFrom([]string{"*", fmt.Sprint(from), fmt.Sprintf("%d-%d", from, min(from+3, high)), "*/7"}).Draw(t, name)
		}
		text := fmt.Sprintf("%s %s %s * %s", field("minute", 0, 59), field("hour", 0, 23), field("day", 1, 28), field("weekday", 0, 6))
		w := newCrons(t, text)
		schedule, err := cron.ParseStandard(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		now := w.Now.Add(time.Duration(rapid.IntRange(0, 90*24*3600).Draw(t, "later")) * time.Second)
		var want time.Time
		for at := schedule.Next(w.Now); !at.IsZero() && !at.After(now); at = schedule.Next(at) {
			want = at
		}
		c := &cronJob{seen: w.cron(), now: now}
		if got, _, err := c.lastDue(schedule, false); err != nil || !got.Equal(want) {
			t.Fatalf("%s: %s and %v, want %s", text, got, err, want)
		}
	})
}
