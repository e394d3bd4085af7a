package io.github.edgeqkv.demo

import android.app.Activity
import android.content.ClipData
import android.content.Intent
import android.graphics.Bitmap
import android.view.View
import android.view.WindowManager
import android.widget.Button
import android.widget.CheckBox
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.ProgressBar
import android.widget.TableLayout
import android.widget.TableRow
import android.widget.TextView
import java.io.IOException

class CompareScreen(
    private val activity: Activity,
    view: View,
    private val compare: CompareModel,
    private val models: ModelsModel,
) : Screen(view, compare, models) {
    private val choices = view.part<LinearLayout>(R.id.compare_models)
    private val problem = view.part<TextView>(R.id.compare_problem)
    private val go = view.part<Button>(R.id.compare_go)
    private val busy = view.part<View>(R.id.compare_busy)
    private val busyText = view.part<TextView>(R.id.compare_busy_text)
    private val progress = view.part<ProgressBar>(R.id.compare_progress)
    private val resultsView = view.part<View>(R.id.compare_results)
    private val sentences = view.part<TextView>(R.id.compare_sentences)
    private val memory = view.part<PlotView>(R.id.compare_memory)
    private val cache = view.part<PlotView>(R.id.compare_cache)
    private val speed = view.part<PlotView>(R.id.compare_speed)
    private val table = view.part<TableLayout>(R.id.compare_table)
    private var listed: List<InstalledModel>? = null
    private var shown: Results? = null

    init {
        view.part<EditText>(R.id.plan_threads).hint = CORES.toString()
        go.setOnClickListener { compare() }
        view.part<Button>(R.id.compare_cancel).setOnClickListener { compare.cancel() }
        view.part<Button>(R.id.share_lines).setOnClickListener { shareLines() }
        view.part<Button>(R.id.share_picture).setOnClickListener { sharePicture() }
    }

    override fun show() {
        val state = compare.state
        val usable = models.state.models.filter { it.problem == null }
        if (usable != listed) list(usable)
        problem.showIf(state.problem != null)
        if (problem.text.toString() != state.problem.orEmpty()) problem.text = state.problem
        val running = state.running
        // Android slows a phone whose screen goes off.
        if (running != null) activity.window.addFlags(KEEP_ON) else activity.window.clearFlags(KEEP_ON)
        go.showIf(running == null)
        busy.showIf(running != null)
        if (running != null) {
            busyText.text = running.what
            progress.isIndeterminate = running.total == 0
            if (running.total > 0) progress.progress = running.done * 1000 / running.total
        }
        resultsView.showIf(state.results != null)
        state.results?.let { if (it !== shown) show(it) }
    }

    private fun list(models: List<InstalledModel>) {
        listed = models
        choices.removeAllViews()
        models.forEach { model ->
            choices.addView(
                CheckBox(activity).apply {
                    text = "${model.name}: ${model.facts}"
                    setTextColor(activity.getColor(R.color.ink))
                    minHeight = (48 * resources.displayMetrics.density).toInt()
                    isChecked = model.key in compare.state.chosen
                    isSaveEnabled = false // the model knows
                    setOnCheckedChangeListener { _, checked -> compare.choose(model.key, checked) }
                },
            )
        }
    }

    private fun compare() {
        fun typed(id: Int) = view.part<EditText>(id).text.toString()
        val fields = PlanFields(
            depths = typed(R.id.plan_depths),
            rounds = typed(R.id.plan_rounds),
            steps = typed(R.id.plan_steps),
            prompt = typed(R.id.plan_prompt),
            threads = typed(R.id.plan_threads),
            coolDown = typed(R.id.plan_cool_down),
        )
        compare.compare(listed.orEmpty().filter { it.key in compare.state.chosen }, fields, CORES)
    }

    private fun show(results: Results) {
        shown = results
        sentences.text = results.sentences.joinToString("\n\n")
        sentences.showIf(results.sentences.isNotEmpty())
        // What the plots show stands in the table below them, and is read aloud with them.
        val (memoryRows, speedRows) = results.table.drop(1).partition { "MiB" in it[0] || it[0].startsWith("of it") }
        val (cacheRows, peakRows) = memoryRows.partition { "cache, MiB" in it[0] }
        memory.show(MemoryPlot(results.measured), inWords(results, peakRows))
        cache.show(CachePlot(results.measured), inWords(results, cacheRows))
        speed.show(DecodePlot(results.measured), inWords(results, speedRows))
        table.removeAllViews()
        results.table.forEachIndexed { number, row ->
            val line = TableRow(activity)
            row.forEachIndexed { column, text -> line.addView(cell(text, heading = number == 0 || column == 0)) }
            table.addView(line)
        }
    }

    private fun inWords(results: Results, rows: List<List<String>>) = results.measured.indices.joinToString(". ") { i ->
        results.measured[i].name + ": " + rows.joinToString(", ") { "${it[0]} ${it[i + 1]}" }
    }

    private fun cell(text: String, heading: Boolean) = TextView(activity).apply {
        this.text = text
        val space = (6 * resources.displayMetrics.density).toInt()
        setPadding(space, space, 2 * space, space)
        maxEms = 14 // grows with the user's size of text
        setTextColor(activity.getColor(if (heading) R.color.quiet else R.color.ink))
        textAlignment = if (heading) View.TEXT_ALIGNMENT_VIEW_START else View.TEXT_ALIGNMENT_VIEW_END
    }

    private fun shareLines() = share(SharedFiles.LINES, "text/plain") { results ->
        SharedFiles.place(activity, SharedFiles.LINES).writeText(results.lines)
    }

    private fun sharePicture() = share(SharedFiles.PICTURE, "image/png") { results ->
        val plots = listOf(MemoryPlot(results.measured), CachePlot(results.measured), DecodePlot(results.measured))
        val picture = PlotPainter(activity).picture(plots)
        SharedFiles.place(activity, SharedFiles.PICTURE).outputStream().use { picture.compress(Bitmap.CompressFormat.PNG, 100, it) }
    }

    private fun share(name: String, type: String, write: (Results) -> Unit) {
        val results = shown ?: return
        try {
            write(results)
        } catch (error: IOException) {
            problem.text = sentence(error)
            problem.showIf(true)
            return
        }
        val uri = SharedFiles.uri(activity, name)
        val send = Intent(Intent.ACTION_SEND).setType(type).putExtra(Intent.EXTRA_STREAM, uri)
            .addFlags(Intent.FLAG_GRANT_READ_URI_PERMISSION)
        send.clipData = ClipData.newRawUri(name, uri)
        activity.startActivity(Intent.createChooser(send, activity.getString(R.string.share_title)))
    }

    private companion object {
        const val KEEP_ON = WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON
        val CORES = Runtime.getRuntime().availableProcessors()
    }
}
