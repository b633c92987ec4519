package scheduler

import (
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Text writes the decision for people to read: what was asked, where the tasks go, and, in the full form, why, with a
// table of all nodes and what every filter said. Every line ends with a newline.
func (d *Decision) Text() string {
	var b strings.Builder
	what := "service " + d.Service
	if d.Service == "" {
		what = "service " + d.ServiceID
	}
	if d.Table != nil && d.TaskID != "" {
		what = "task " + d.TaskID + " of " + what
	}
	fmt.Fprintf(&b, "%s: %d of %d placed", what, d.Placed, d.Wanted)
	if d.Index != 0 {
		fmt.Fprintf(&b, ", from the state at index %d", d.Index)
	}
	b.WriteByte('\n')
	if d.Explanation != "" {
		fmt.Fprintf(&b, "%s\n", d.Explanation)
	}
	fmt.Fprintf(&b, "%d nodes, %d examined", d.Nodes, d.Examined)
	for i, r := range d.Rejected {
		sep := "; ruled out: "
		if i > 0 {
			sep = ", "
		}
		fmt.Fprintf(&b, "%s%s %d", sep, r.Filter, r.Nodes)
	}
	b.WriteByte('\n')
	if d.Table != nil {
		d.writeTable(&b)
		return b.String()
	}
	writeChoices(&b, "winner", d.Winners)
	if more := d.WinnerNodes - len(d.Winners); more > 0 {
		fmt.Fprintf(&b, "and %d more\n", more)
	}
	writeChoices(&b, "runner-up", d.RunnersUp)
	return b.String()
}

func writeChoices(b *strings.Builder, what string, choices []Choice) {
	for _, c := range choices {
		fmt.Fprintf(b, "%s %s", what, hostOf(c.Hostname, c.NodeID))
		if c.Tasks > 0 {
			fmt.Fprintf(b, " +%d", c.Tasks)
		}
		fmt.Fprintf(b, ": %d of the service, %d in all", c.ServiceTasks, c.ActiveTasks)
		if c.RecentFailures > 0 {
			fmt.Fprintf(b, ", %d recent failures", c.RecentFailures)
		}
		b.WriteByte('\n')
	}
}

func (d *Decision) writeTable(b *strings.Builder) {
	if d.CurrentNode != "" {
		fmt.Fprintf(b, "the task is on %s; the table shows the cluster without it\n", d.nameOf(d.CurrentNode))
	}
	if len(d.Winners) > 0 {
		fmt.Fprintf(b, "it would go to %s now: ", d.nameOf(d.Winners[0].NodeID))
	}
	if d.Why != "" {
		fmt.Fprintf(b, "%s\n", d.Why)
	}
	b.WriteByte('\n')
	t := tabwriter.NewWriter(b, 0, 8, 3, ' ', 0)
	head := "RANK\tNODE\tFAILURES\tSERVICE TASKS\tALL TASKS"
	for _, s := range d.Spread {
		head += "\t" + strings.ToUpper(s)
	}
	fmt.Fprintln(t, head)
	for i := range d.Table {
		v := &d.Table[i]
		rank := "-"
		if v.Fits {
			rank = strconv.Itoa(v.Rank)
		}
		if v.Winner {
			rank += " *"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d", rank, name(v), v.RecentFailures, v.ServiceTasks, v.ActiveTasks)
		for _, s := range v.Branch {
			fmt.Fprintf(t, "\t%q", s)
		}
		fmt.Fprintln(t)
	}
	_ = t.Flush() // a strings.Builder never fails
	b.WriteByte('\n')
	t = tabwriter.NewWriter(b, 0, 8, 3, ' ', 0)
	fmt.Fprintln(t, "NODE\tFILTER\t\tDETAIL")
	for i := range d.Table {
		v := &d.Table[i]
		for k, f := range v.Filters {
			host, verdict := "", "ok"
			if k == 0 {
				host = name(v)
			}
			if !f.Passed {
				verdict = "FAILS"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", host, f.Filter, verdict, f.Detail)
		}
	}
	_ = t.Flush()
}

func (d *Decision) nameOf(nodeID string) string {
	for i := range d.Table {
		if d.Table[i].NodeID == nodeID {
			return name(&d.Table[i])
		}
	}
	return nodeID
}

func hostOf(hostname, id string) string {
	if hostname != "" {
		return hostname
	}
	return id
}
