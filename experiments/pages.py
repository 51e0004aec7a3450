"""Pages of runs: one for each in its folder, a file that opens anywhere; `gallery` has the one that shows them all."""


def write(run):
    """Write the run's page into its folder and return the path."""
    return publish(run.folder / "report.html", report(run))


def report(run):
    """One run's page as text."""
    from experiments import runner
    from numdl import reporting

    parts = runner.headings(run.name)
    title = parts["title"]
    shown = section_of(run, title="Theory beside measurement", parts=parts)
    lecture = f"Lecture: {parts['Lecture']}" if parts["Lecture"] else ""
    return reporting.page(title, [shown], intro=lecture, contents=False)


def section_of(run, *, title, parts):
    """One run's section: question, prediction, measurement, figure, claims."""
    from experiments import runner
    from numdl import reporting

    symbols = getattr(runner.load(run.name), "GLOSSARY", None)
    return reporting.run_section(run, title=title, parts=parts, symbols=symbols)


def publish(path, text):
    """Write a page, whole or not at all."""
    from numdl import reporting

    return reporting.publish(path, text)
