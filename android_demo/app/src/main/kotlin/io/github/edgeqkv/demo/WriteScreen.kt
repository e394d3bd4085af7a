package io.github.edgeqkv.demo

import android.app.Activity
import android.os.Bundle
import android.view.View
import android.view.inputmethod.InputMethodManager
import android.widget.AdapterView
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.EditText
import android.widget.ScrollView
import android.widget.Spinner
import android.widget.TextView

class WriteScreen(
    private val activity: Activity,
    view: View,
    private val write: WriteModel,
    private val models: ModelsModel,
) : Screen(view, write, models) {
    private val choice = view.part<Spinner>(R.id.write_model)
    private val meter = view.part<TextView>(R.id.write_meter)
    private val scroll = view.part<ScrollView>(R.id.write_scroll)
    private val template = view.part<View>(R.id.write_template)
    private val text = view.part<TextView>(R.id.write_text)
    private val status = view.part<TextView>(R.id.write_status)
    private val problem = view.part<TextView>(R.id.write_problem)
    private val last = view.part<Button>(R.id.write_last)
    private val new = view.part<Button>(R.id.write_new)
    private val options = view.part<View>(R.id.write_options_panel)
    private val prompt = view.part<EditText>(R.id.write_prompt)
    private val go = view.part<Button>(R.id.write_go)
    private val optionsButton = view.part<Button>(R.id.write_options)
    private var choices: List<InstalledModel>? = null
    private var followed: String? = null // the model that the list was last set to
    private var optionsShown = false

    init {
        go.setOnClickListener { if (write.state.busy) write.stop() else start(prompt.text.toString()) }
        last.setOnClickListener { write.startOverWithLast() }
        new.setOnClickListener { write.newText() }
        optionsButton.setOnClickListener {
            optionsShown = !optionsShown
            show()
        }
        choice.onItemSelectedListener = object : AdapterView.OnItemSelectedListener {
            override fun onItemSelected(parent: AdapterView<*>, row: View?, position: Int, id: Long) {
                choices?.getOrNull(position)?.let { if (it.key != write.state.model?.key) write.choose(it) }
            }

            override fun onNothingSelected(parent: AdapterView<*>) = Unit
        }
    }

    override fun save(state: Bundle) = state.putBoolean(OPTIONS, optionsShown)

    override fun restore(state: Bundle) {
        optionsShown = state.getBoolean(OPTIONS)
    }

    override fun show() {
        val state = write.state
        showChoices(state)
        val atEnd = !scroll.canScrollVertically(1)
        if (text.text.toString() != state.text) text.text = state.text
        template.showIf(state.chatTemplate)
        showMeter(state)
        showStatus(state)
        problem.showIf(state.problem != null)
        if (problem.text.toString() != state.problem.orEmpty()) problem.text = state.problem
        last.showIf(state.phase == WriteModel.Phase.FULL)
        new.showIf(state.text.isNotEmpty() && !state.busy)
        val refused = write.takeRefusedPrompt()
        if (refused != null && prompt.text.isEmpty()) prompt.setText(refused)
        prompt.setHint(if (state.text.isEmpty()) R.string.prompt_hint else R.string.prompt_more_hint)
        go.setText(if (state.busy) R.string.stop else R.string.write)
        // Also with a full cache: a prompt that did not fit may be shortened.
        go.isEnabled = state.busy || state.phase == WriteModel.Phase.READY || state.phase == WriteModel.Phase.FULL
        showOptions()
        if (atEnd && state.busy) scroll.post { scroll.fullScroll(View.FOCUS_DOWN) }
    }

    private fun start(prompt: String) {
        val fields = listOf(
            R.id.option_temperature,
            R.id.option_top_k,
            R.id.option_top_p,
            R.id.option_penalty,
            R.id.option_seed,
            R.id.option_tokens,
        ).map { view.part<EditText>(it).text.toString() }
        this.prompt.text.clear()
        optionsShown = false
        activity.getSystemService(InputMethodManager::class.java)?.hideSoftInputFromWindow(view.windowToken, 0)
        write.write(prompt, WriteSettings(fields[0], fields[1], fields[2], fields[3], fields[4], fields[5]))
    }

    private fun showChoices(state: WriteModel.State) {
        if (!write.started) return // the model of the text that was put away may come back first
        val usable = models.state.models.filter { it.problem == null }
        if (usable != choices) {
            choices = usable
            followed = null
            choice.adapter = ArrayAdapter(
                activity,
                android.R.layout.simple_spinner_dropdown_item,
                usable.map { "${it.name}: ${it.variant}, ${it.cache} cache" },
            )
        }
        // Only when another model is there: what the user has just chosen is not undone by the next token of the old one.
        val current = usable.indexOfFirst { it.key == state.model?.key }
        if (current >= 0 && followed != state.model?.key) {
            followed = state.model?.key
            choice.setSelection(current)
        }
    }

    private fun showMeter(state: WriteModel.State) {
        val facts = listOfNotNull(
            activity.getString(R.string.meter_depth, count(state.depth), count(state.capacity)),
            activity.getString(R.string.meter_cache, mib(state.filledBytes, 2), mib(state.cacheBytes, 2)),
            state.tokensPerSecond?.let { activity.getString(R.string.meter_speed, rate(it)) },
        )
        meter.text = if (state.capacity == 0) "" else facts.joinToString(" · ")
    }

    private fun showStatus(state: WriteModel.State) {
        val what = when (state.phase) {
            WriteModel.Phase.OPENING -> activity.getString(R.string.opening, state.model?.name)
            WriteModel.Phase.READING -> activity.getString(R.string.reading_prompt)
            WriteModel.Phase.WRITING -> activity.getString(R.string.writing)
            WriteModel.Phase.AWAY -> activity.getString(R.string.saved_away)
            else -> ""
        }
        if (status.text.toString() != what) status.text = what // or it would be read aloud with each token
        status.showIf(what.isNotEmpty())
    }

    private fun showOptions() {
        options.showIf(optionsShown)
        text.showIf(!optionsShown)
        optionsButton.setText(if (optionsShown) R.string.text_back else R.string.options)
    }

    private companion object {
        const val OPTIONS = "options"
    }
}
